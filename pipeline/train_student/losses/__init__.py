"""The loss library: pure functions of dense logits, `loss(student_BC, teacher_BC, labels_B, *, ...) -> [B]`.

kernel.py          alpha-beta divergence    divergences.py  KL, reverse KL, power divergence (REDistill), chi^2, ...
adaptive.py        AlphaNet's divergence    balanced.py      adaptive KL        levels.py        MLKD
mixtures.py        Jensen-Shannon, skewed and symmetric KL, total variation, TAID
decoupled.py       DKD, RLD, NKD, WSLD          correlation.py   DIST          matching.py   TTM, WTTM
refinement.py      LA (swap), RC, LR            labels.py        CE, GCE, SCE, APL, soft CE
ranking.py         ListMLE                      wasserstein.py     over classes that are near or far
features.py        what a store holds of the teacher's features          memory.py      what is remembered of examples
sparse.py          losses of the best classes alone: no block of all classes exists
numerics.py        temperatures, log-probabilities and pieces that stay finite, for all of them
semiparametric.py  SEL and its corrections      standardise.py   logit standardisation, for any of them; NormKD
transforms.py      what a target is made of, before any loss: label_mix, calibrate, ...; transform_fits.py fits them
mixed.py           what teachers say of mixed samples       rated.py         how often they are right about a row
row_weights.py     how much a row counts        class_weights.py by the class of the row
row_rules.py       the tables of these and of rules of temperatures, and how a rule is applied

table.py           LOSSES: name -> function, paper, needs, recipe, options and their domains
                   made of table_recipes.py, table_divergences.py, table_labels.py; beside it table_features.py and
                   table_memory.py; kinds.py what an entry is
plan.py            a term while its settings are read
term.py            one loss of an objective, with all that goes with it
parse.py           the text of --loss and --set -> objective.py: Objective, called once per step
batch_rows.py      some rows of a step, as terms see them
chunks.py          losses of many rows, some at a time
learned.py         what is learned beside the student: temperatures, weights of terms
feedback.py        how many of the hardest rows are kept, by feedback from the loss
schedule.py        when a term counts: windows and ramps of its weight
targets.py         the targets of losses that a student without gradients can be fitted to
own.py             a loss of the user's own, held to the laws; own_transform.py likewise
written.py         NAME?option=value:weight + NAME; parse_transforms.py   the text of --set target_transform
context.py         what a step gets: the teacher's answer and what of it is known, and where the run is
describe.py        the same table as text; groups.py   the losses by what they are for

Section numbers in the references were not checked again; what else could not be verified stands in the table.
"""

from .context import Answer, ExactAnswer, Step, StoredFeatures, TeacherFeatures
from .describe import describe_loss, describe_losses
from .groups import GROUPS
from .kinds import SEARCH, Loss, Material
from .mixed import MixedAnswer
from .objective import Objective, refuse_missing
from .own import own_loss
from .own_transform import own_transform
from .parse import parse_objective, takes_setting
from .parse_transforms import TARGET_TRANSFORM
from .rated import RatedAnswer
from .table import EVERY_LOSS, LOSSES
from .targets import Targets, check_fitted, fitted_targets
from .term import Term
from .transform_fits import Fitted
from .transforms import TRANSFORMS, TargetTransform, Transform
from .written import own_names

__all__ = [
    "EVERY_LOSS",
    "GROUPS",
    "LOSSES",
    "SEARCH",
    "TARGET_TRANSFORM",
    "TRANSFORMS",
    "Answer",
    "ExactAnswer",
    "Fitted",
    "Loss",
    "Material",
    "MixedAnswer",
    "Objective",
    "RatedAnswer",
    "Step",
    "StoredFeatures",
    "TargetTransform",
    "Targets",
    "TeacherFeatures",
    "Term",
    "Transform",
    "check_fitted",
    "describe_loss",
    "describe_losses",
    "fitted_targets",
    "own_loss",
    "own_names",
    "own_transform",
    "parse_objective",
    "refuse_missing",
    "takes_setting",
]
