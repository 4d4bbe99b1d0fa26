"""Tar shards as WebDataset writes them: local ones are indexed, remote ones are streamed."""
