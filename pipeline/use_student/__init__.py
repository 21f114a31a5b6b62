"""What is done with a student once it is trained.

load.py      a run's folder -> a Student: its network, input transform and class names
predict.py   its answers about new data, to a file
"""
