"""Many machines, methods and widths at once: a grid, random points or a search, resumable. See README.md."""
