"""onbrand: fine-tune Stable Diffusion on a product catalogue and keep the catalogue's look."""
