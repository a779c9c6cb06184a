"""The eleven papers. A slug names a paper everywhere in this project."""

from __future__ import annotations

from dataclasses import dataclass

from zfu_lib.report import paths

FAMILIES = {
    "attention": "Efficient attention",
    "merging": "Model merging and knowledge editing",
    "reasoning": "Reasoning with large and small models",
    "skills": "Skill extraction",
    "prediction": "Temporal knowledge graphs and recommendation",
}


@dataclass(frozen=True)
class Paper:
    """One paper of the book: ``slug`` is its key in every folder, ``family`` its part of the book, ``arxiv`` its identifier there."""

    slug: str
    title: str
    family: str
    arxiv: str

    @property
    def in_progress(self) -> bool:
        """True until the chapter's notebook exists."""
        return not paths.notebook(self.slug).is_file()


PAPERS = {
    paper.slug: paper
    for paper in (
        Paper(
            "swat", "Sliding Window Attention Training for Efficient Large Language Models", "attention", "2502.18845"
        ),
        Paper(
            "lazy_attention",
            "Attention Needs to Focus: A Unified Perspective on Attention Allocation",
            "attention",
            "2601.00919",
        ),
        Paper("hi_merging", "Training-free LLM Merging for Multi-task Learning", "merging", "2506.12379"),
        Paper("mm4ke", "Model Merging for Knowledge Editing", "merging", "2506.12384"),
        Paper(
            "tandem",
            "Tandem: Riding Together with Large and Small Language Models for Efficient Reasoning",
            "reasoning",
            "2604.23623",
        ),
        Paper(
            "adaptime",
            "AdapTime: Enabling Adaptive Temporal Reasoning in Large Language Models",
            "reasoning",
            "2604.24175",
        ),
        Paper(
            "multidx",
            "MultiDx: A Multi-Source Knowledge Integration Framework towards Diagnostic Reasoning",
            "reasoning",
            "2604.24186",
        ),
        Paper("sricl", "Job Skill Extraction via LLM-Centric Multi-Module Framework", "skills", "2604.21525"),
        Paper(
            "chinese_skillspan",
            "Chinese-SkillSpan: A Span-Level Dataset for ESCO-Aligned Competency Extraction",
            "skills",
            "2604.23009",
        ),
        Paper(
            "mesh",
            "Multi-Expert Structural-Semantic Hybrid Framework for Temporal Knowledge Graphs",
            "prediction",
            "2506.14235",
        ),
        Paper(
            "llm4msr", "LLM4MSR: An LLM-Enhanced Paradigm for Multi-Scenario Recommendation", "prediction", "2406.12529"
        ),
    )
}

APPENDICES: dict[str, str] = {"tiny_models": "The tiny models"}
"""Notebooks that belong to no paper, by slug: executed, sealed and shown like a chapter, with no page of a paper and,
where they have no file, without claims."""


def chapters() -> list[str]:
    """Slugs whose notebook exists, in the book's order."""
    return [slug for slug, paper in PAPERS.items() if not paper.in_progress]


def notebooks() -> list[str]:
    """Slugs of everything that is run and shown: the chapters, then the appendices."""
    return chapters() + [slug for slug in APPENDICES if paths.notebook(slug).is_file()]
