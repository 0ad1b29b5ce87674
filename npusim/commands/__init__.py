"""Commands of ``npusim`` that have a file of their own; `npusim.cli` registers them."""
