"""Diagnosis: what the machine is and can do (`doctor`), where a step's time goes (`profile`), what a run costs.

Training imports this package at small hooks only; nothing here changes what a training computes.
"""
