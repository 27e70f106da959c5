"""The commands, one function each; `cli` makes a program of them."""
