"""How a server makes teachers of what clients answer: one file a strategy, named as published."""
