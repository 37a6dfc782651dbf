"""Segmentation over HTTP, with a page to try it on: `fastscnn serve` (extra `[serve]`)."""
