"""Fitting a K transform to a model: moments of one part of a text, kinds chosen on another, the whole judged
on a third (docs/transform.md).
"""
