"""Stores elsewhere: copies to and from folders, zip files, web servers and buckets. May import all of `stores`.

copy, fetch, push, widen, cache     handing on; into a folder, to a bucket; a part made wider; copies kept here
sources, streams, web, zip_file, bucket, refusals   places, and what they answer
shipping, shipping_writer           a teacher written to a bucket by machines that share no folder
"""
