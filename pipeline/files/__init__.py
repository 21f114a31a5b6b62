"""What is written beside stores: JSON of finite numbers, and versions. May import nothing of ours."""
