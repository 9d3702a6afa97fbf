"""Weight files: read safely, named, hashed, downloaded, and the format of checkpoints.

reading      the tensors of a file, without running code; where encoders' weights are looked for
download     files of the Hub, checked
name_maps    published names of tensors, strictly in and out
hashing      which model is it?
checkpoint   a run's checkpoints: complete or not there; saved: how they are read; sharded, shard_writer: by many
             processes; host_copy: what is written while the training goes on
"""
