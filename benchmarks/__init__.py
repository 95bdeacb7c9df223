"""Side-by-side measurements of this library and of others; see README.md."""
