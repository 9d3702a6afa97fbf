"""What folders, archives, shards and tables of images hold: found, understood and read, one file at a time.

names          files (what may be an image; reading by place), folders (the one walk), archives (zips and tars)
samples        webdataset, parquet
all together   listing; scratch (where compressed tars are unpacked)
"""
