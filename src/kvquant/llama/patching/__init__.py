"""The patch engine: recipes of anchored edits, generated for the llama.cpp tree at hand.

``recipe`` reads the series, ``plan`` computes every edit in memory, ``drift`` explains an anchor that does
not match, ``transaction`` changes a tree all-or-nothing and back, ``diff`` writes ordinary unified diffs.
"""
