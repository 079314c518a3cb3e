"""Several pipelines draw the first steps of one picture together."""
