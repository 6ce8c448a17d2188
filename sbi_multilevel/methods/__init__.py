"""The methods: multilevel, transfer, hybrid, and rounds."""
