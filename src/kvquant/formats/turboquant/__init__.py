"""TurboQuant (arXiv 2504.19874): random rotation, optimal scalar codes, one stored length per vector."""
