"""STAGE TWO: train students from a store, without the teacher."""
