"""Winning tickets: from attention maps to layouts in the initial noise, and what guides beside them."""
