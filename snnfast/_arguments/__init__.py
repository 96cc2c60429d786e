"""What is checked of arguments: ``checks`` of their kind, ``axes`` of a shape, ``hints`` at what was meant."""
