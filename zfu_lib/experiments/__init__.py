"""The runs that notebooks show, one module per paper: they compose methods, data and models, return plain results."""
