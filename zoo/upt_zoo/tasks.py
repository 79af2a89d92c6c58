"""The task catalogue: GLUE, the paper's eight domain tasks, CSAbstruct and SQuAD 1.1.

For each task its text fields, labels in the order of their numbers, head, metrics (the first one
decides), licence of the data, and where the Hugging Face hub keeps it. Knows no rows.

Sources: GLUE (Wang et al. 2018); "Don't Stop Pretraining" (Gururangan et al. 2020) for the domain
tasks; Cohan et al. 2019 (CSAbstruct); SQuAD (Rajpurkar et al. 2016).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from upt_zoo.close_names import did_you_mean
from upt_zoo.errors import NotFound
from upt_zoo.spec import Head, HeadKind, TaskInput

Metric = Literal[
    "accuracy",
    "f1",
    "macro_f1",
    "micro_f1",
    "matthews_correlation",
    "pearson",
    "spearmanr",
    "exact_match",
    "precision",
    "recall",
]
_OF_ONE_TEXT: tuple[HeadKind, ...] = ("token_classification", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A data set on the Hugging Face hub and the names of its splits there."""

    path: str
    name: str | None = None
    dev_split: str = "validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Files of a task that is not in the catalogue: one a split, and the column of the answers."""

    paths: Mapping[str, str]
    gold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task of the catalogue, or a user's own.

    ``backbone_overlap`` says how the embedded backbone's own training data touch this task.
    """

    name: str
    title: str
    fields: tuple[str, ...]
    metrics: tuple[Metric, ...]
    labels: tuple[str, ...] | None
    kind: HeadKind
    data_licence: str
    commercial_use: Literal["yes", "no", "unclear"]
    description: str
    max_tokens: int = 128
    stride: int | None = None
    hub: HubSource | None = None
    files: FileSource | None = None
    backbone_overlap: str | None = None
    adapter_licence: str = "Apache-2.0"

    def input(self, *, max_tokens: int | None = None) -> TaskInput:
        """Return the input part of an adapter's spec.

        What finds entities or embeds reads one text, in whatever columns it learnt from.
        """
        return TaskInput(
            name=self.name,
            fields=("text",) if self.kind in _OF_ONE_TEXT else self.fields,
            max_tokens=max_tokens or self.max_tokens,
            stride=self.stride,
            metric=self.metrics[0],
            description=self.description,
        )

    def head(self, hidden: int = 1) -> Head:
        """Return the head part of an adapter's spec: one linear layer, on [CLS] or each token.

        Of an embedding on a backbone of this ``hidden`` size there is no layer.
        """
        if self.kind == "embedding":
            return Head(kind=self.kind, outputs=hidden, normalised=True)
        outputs = {"span": 2, "regression": 1}.get(self.kind) or len(self.labels or ())
        return Head(kind=self.kind, outputs=outputs, labels=self.labels)


def find_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        NotFound: the catalogue has no such task.
    """
    try:
        return TASKS[name]
    except KeyError:
        hint = did_you_mean(name, TASKS) or ";"
        raise NotFound(
            f"no task {name!r} in the catalogue{hint} it has {', '.join(TASKS)}"
        ) from None


_GLUE_UNSTATED = "not stated by GLUE for this task"
_SNLI_OVERLAP = (
    "all-MiniLM-L6-v2 was trained on the sentence pairs of SNLI and MultiNLI, "
    "with entailment pairs as positives"
)

_ALL = (
    Task(
        name="cola",
        title="CoLA (GLUE)",
        fields=("sentence",),
        metrics=("matthews_correlation",),
        labels=("unacceptable", "acceptable"),
        kind="classification",
        data_licence=f"{_GLUE_UNSTATED}; sentences from published linguistics works",
        commercial_use="unclear",
        description="Is this English sentence grammatically acceptable?",
        hub=HubSource(path="nyu-mll/glue", name="cola"),
    ),
    Task(
        name="sst2",
        title="SST-2 (GLUE)",
        fields=("sentence",),
        metrics=("accuracy",),
        labels=("negative", "positive"),
        kind="classification",
        data_licence=f"{_GLUE_UNSTATED}; research data by Socher et al. 2013",
        commercial_use="unclear",
        description="Is this sentence of a film review positive or negative?",
        hub=HubSource(path="nyu-mll/glue", name="sst2"),
    ),
    Task(
        name="mrpc",
        title="MRPC (GLUE)",
        fields=("sentence1", "sentence2"),
        metrics=("f1", "accuracy"),
        labels=("not_equivalent", "equivalent"),
        kind="classification",
        data_licence="Microsoft Research Paraphrase Corpus licence",
        commercial_use="unclear",
        description="Do these two sentences say the same?",
        hub=HubSource(path="nyu-mll/glue", name="mrpc"),
    ),
    Task(
        name="stsb",
        title="STS-B (GLUE)",
        fields=("sentence1", "sentence2"),
        metrics=("pearson", "spearmanr"),
        labels=None,
        kind="regression",
        data_licence="STS Benchmark: mixed origins, mostly CC BY-SA 4.0",
        commercial_use="unclear",
        description="How similar are these two sentences, from 0 to 5?",
        hub=HubSource(path="nyu-mll/glue", name="stsb"),
    ),
    Task(
        name="qqp",
        title="QQP (GLUE)",
        fields=("question1", "question2"),
        metrics=("f1", "accuracy"),
        labels=("not_duplicate", "duplicate"),
        kind="classification",
        data_licence="Quora's terms for the release of 2017 (non-commercial)",
        commercial_use="no",
        description="Do these two questions ask the same?",
        hub=HubSource(path="nyu-mll/glue", name="qqp"),
        backbone_overlap="all-MiniLM-L6-v2 was trained on Quora's duplicate question pairs",
    ),
    Task(
        name="mnli",
        title="MNLI (GLUE)",
        fields=("premise", "hypothesis"),
        metrics=("accuracy",),
        labels=("entailment", "neutral", "contradiction"),
        kind="classification",
        data_licence="MultiNLI: mostly the OANC's licence; parts CC BY(-SA) 3.0",
        commercial_use="unclear",
        description="Does the premise entail the hypothesis, contradict it, or neither?",
        hub=HubSource(path="nyu-mll/glue", name="mnli", dev_split="validation_matched"),
        backbone_overlap=_SNLI_OVERLAP,
    ),
    Task(
        name="qnli",
        title="QNLI (GLUE)",
        fields=("question", "sentence"),
        metrics=("accuracy",),
        labels=("entailment", "not_entailment"),
        kind="classification",
        data_licence="CC BY-SA 4.0 (derived from SQuAD)",
        commercial_use="yes",
        description="Does this sentence contain the answer to the question?",
        hub=HubSource(path="nyu-mll/glue", name="qnli"),
        backbone_overlap="all-MiniLM-L6-v2 was trained on SQuAD's pairs of question and paragraph",
    ),
    Task(
        name="rte",
        title="RTE (GLUE)",
        fields=("sentence1", "sentence2"),
        metrics=("accuracy",),
        labels=("entailment", "not_entailment"),
        kind="classification",
        data_licence=f"{_GLUE_UNSTATED}; RTE challenges 1, 2, 3 and 5",
        commercial_use="unclear",
        description="Does the first text entail the second?",
        max_tokens=256,
        hub=HubSource(path="nyu-mll/glue", name="rte"),
        backbone_overlap=_SNLI_OVERLAP,
    ),
    Task(
        name="wnli",
        title="WNLI (GLUE)",
        fields=("sentence1", "sentence2"),
        metrics=("accuracy",),
        labels=("not_entailment", "entailment"),
        kind="classification",
        data_licence=f"{_GLUE_UNSTATED}; Winograd schemas are CC BY 4.0",
        commercial_use="yes",
        description="Does the sentence with the pronoun replaced follow from the first?",
        hub=HubSource(path="nyu-mll/glue", name="wnli"),
    ),
    Task(
        name="chemprot",
        title="ChemProt",
        fields=("text",),
        metrics=("micro_f1",),
        labels=(
            "ACTIVATOR",
            "AGONIST",
            "AGONIST-ACTIVATOR",
            "AGONIST-INHIBITOR",
            "ANTAGONIST",
            "DOWNREGULATOR",
            "INDIRECT-DOWNREGULATOR",
            "INDIRECT-UPREGULATOR",
            "INHIBITOR",
            "PRODUCT-OF",
            "SUBSTRATE",
            "SUBSTRATE_PRODUCT-OF",
            "UPREGULATOR",
        ),
        kind="classification",
        data_licence="BioCreative VI ChemProt (research use)",
        commercial_use="no",
        description="Which relation holds between the marked chemical and the marked protein?",
        max_tokens=256,
    ),
    Task(
        name="rct",
        title="RCT (PubMed 20k)",
        fields=("text",),
        metrics=("micro_f1",),
        labels=("BACKGROUND", "CONCLUSIONS", "METHODS", "OBJECTIVE", "RESULTS"),
        kind="classification",
        data_licence="not stated; abstracts of PubMed (Dernoncourt and Lee 2017)",
        commercial_use="unclear",
        description="Which role has this sentence in the abstract of a clinical trial?",
    ),
    Task(
        name="acl_arc",
        title="ACL-ARC citation intent",
        fields=("text",),
        metrics=("macro_f1",),
        labels=("Background", "CompareOrContrast", "Extends", "Future", "Motivation", "Uses"),
        kind="classification",
        data_licence="not stated (Jurgens et al. 2018)",
        commercial_use="unclear",
        description="Why does this sentence cite the other paper?",
    ),
    Task(
        name="scierc",
        title="SciERC relation classification",
        fields=("text",),
        metrics=("macro_f1",),
        labels=(
            "COMPARE",
            "CONJUNCTION",
            "EVALUATE-FOR",
            "FEATURE-OF",
            "HYPONYM-OF",
            "PART-OF",
            "USED-FOR",
        ),
        kind="classification",
        data_licence="not stated (Luan et al. 2018)",
        commercial_use="unclear",
        description="Which relation holds between the two marked scientific terms?",
    ),
    Task(
        name="hyperpartisan",
        title="HyperPartisan news",
        fields=("text",),
        metrics=("macro_f1",),
        labels=("false", "true"),
        kind="classification",
        data_licence="CC BY 4.0 (Kiesel et al. 2019)",
        commercial_use="yes",
        description="Does this news article follow one party blindly?",
        max_tokens=512,
    ),
    Task(
        name="ag_news",
        title="AG News",
        fields=("text",),
        metrics=("macro_f1",),
        labels=("World", "Sports", "Business", "Sci/Tech"),
        kind="classification",
        data_licence="AG's corpus of news articles (non-commercial use)",
        commercial_use="no",
        description="Which section does this news text belong to?",
        hub=HubSource(path="fancyzhx/ag_news", dev_split="test"),
    ),
    Task(
        name="amazon_helpfulness",
        title="Amazon review helpfulness (stand-in: musical instruments only)",
        fields=("text",),
        metrics=("macro_f1",),
        labels=("unhelpful", "helpful"),
        kind="classification",
        data_licence="Amazon product data (research use)",
        commercial_use="no",
        description="Did other customers find this review helpful?",
        max_tokens=256,
    ),
    Task(
        name="imdb",
        title="IMDB film reviews",
        fields=("text",),
        metrics=("macro_f1",),
        labels=("negative", "positive"),
        kind="classification",
        data_licence="Large Movie Review Dataset, no explicit licence (Maas et al. 2011)",
        commercial_use="unclear",
        description="Is this film review positive or negative?",
        max_tokens=512,
        hub=HubSource(path="stanfordnlp/imdb", dev_split="test"),
    ),
    Task(
        name="csabstruct",
        title="CSAbstruct",
        fields=("text",),
        metrics=("micro_f1",),
        labels=("background", "method", "objective", "other", "result"),
        kind="classification",
        data_licence="not stated (Cohan et al. 2019)",
        commercial_use="unclear",
        description="Which role has this sentence in the abstract of a computer science paper?",
    ),
    Task(
        name="squad",
        title="SQuAD 1.1",
        fields=("question", "context"),
        metrics=("f1", "exact_match"),
        labels=None,
        kind="span",
        data_licence="CC BY-SA 4.0",
        commercial_use="yes",
        description="Which words of the context answer the question?",
        max_tokens=384,
        stride=128,
        hub=HubSource(path="rajpurkar/squad"),
        backbone_overlap="all-MiniLM-L6-v2 was trained on SQuAD's pairs of question and paragraph",
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
