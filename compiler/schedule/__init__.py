"""From the integer graph to instructions: placement, tiling, tokens, program."""
