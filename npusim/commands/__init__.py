"""Commands of ``npusim``, one module each; `npusim.cli` registers them."""
