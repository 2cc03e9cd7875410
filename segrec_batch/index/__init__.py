"""The index: schemas, encoding, Parquet files, Delta tables."""
