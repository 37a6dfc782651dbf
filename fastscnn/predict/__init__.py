"""Labels for images, folders and clips: what `fastscnn segment` and `fastscnn demo` run."""
