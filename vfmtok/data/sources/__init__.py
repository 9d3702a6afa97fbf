"""Where images come from: folders, archives, shards, tables.

listing       what is there: splits, classes, samples
files         reading one entry
webdataset    tars of samples; parquet: tables
scratch       temporary space; ordered_pool: results in order
"""
