"""Figures and tables of both papers: what runs them, and what was published."""
