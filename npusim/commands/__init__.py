"""Commands of ``npusim`` that have a module of their own; `npusim.cli` registers them."""
