"""Smaller and faster under an accuracy budget: one file for each method."""
