"""Features of many images or clips in Parquet files, on one machine or on a cluster of Ray."""
