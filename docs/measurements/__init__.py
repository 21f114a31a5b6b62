"""Pages that report a measurement, their figures, and the scripts behind two of them."""
