"""STAGE TWO: train students from a store, without the teacher.

run                          a whole run, top to bottom
spec, recipes                what a run may be told; settings that go together, by name
inputs, decisions, plan      what a run reads; what is decided and refused before its first step; what it then is
needs, cautions, seen        what a loss asks of a store; what is said first; which examples were trained on
left_out, order              a fold for the next generation; the order of rows
losses/                      pure functions of logits
own_loss, capturing          losses of the user's own; what losses take of a student beside its logits
class_counts, privacy        what row weights go by; what does not go with DP-SGD
search, label_share, label_weight, fit_transforms   what is "auto", or fitted on the store
distillation, fitted         what is trained, step by step; a student that is fitted in one go
evaluate, over_positions, golden                    what is measured
folder, result, store_identity, loggers/            what is left of a run, and who is told of it
sweep, points, planned, pool, halving, on_ray       many runs: which, and who trains them
runs, compare                runs that are there; means, spreads and paired differences
"""
