"""What the reference model reads: the words it knows, its tokenizer, and documents and questions from a seed.

The evaluation asks these of any model. The network, its training and its file are made by
`tools/reference_model`. Nothing is imported from this module itself, and nothing here needs torch.
"""
