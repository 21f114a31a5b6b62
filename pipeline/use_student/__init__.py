"""What is done with a student once it is trained.

load.py      a run's folder -> a Student: its network, input transform and class names
predict.py   its answers about new data, to a file
export.py    the same network for other programs, compared with it; card.py its README, timm_folder.py what timm reads
"""
