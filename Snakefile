# (paper, profile) -> sealed run -> site.  `snakemake --cores 2 book`, or `make book`.
# A cluster or Kubernetes: install an executor plug-in of Snakemake and add `--executor slurm`.
import sys

from zfu_lib.report import dependencies, papers

PROFILE = config.get("profile", "quick")
SLUGS = str(config["papers"]).split(",") if "papers" in config else papers.notebooks()
PYTHON = sys.executable


rule book:
    default_target: True
    input:
        "_build/html/index.html",


rule runs:
    input:
        expand("runs/{profile}/{slug}/current.json", profile=PROFILE, slug=SLUGS),


# `update` keeps the pointer to the run before when this one fails. A dumb terminal gets plain lines: runs share it.
rule run:
    input:
        lambda wildcards: dependencies.of_paper(wildcards.slug),
    output:
        update("runs/{profile}/{slug}/current.json"),
    wildcard_constraints:
        profile="quick|full|paper",
        slug="[a-z0-9_]+",
    params:
        publish="--publish" if config.get("publish") else "",
    threads: lambda wildcards: 1 if wildcards.profile == "quick" else workflow.cores or 1
    resources:
        gpu=lambda wildcards: int(wildcards.profile != "quick"),
    shell:
        "TERM=dumb {PYTHON:q} -m zfu_lib.cli run {wildcards.slug} --profile {wildcards.profile} {params.publish}"


# `update`: the old site stays until the new one replaces it.
rule site:
    input:
        rules.runs.input,
        dependencies.of_site(),
    output:
        update("_build/html/index.html"),
    params:
        profile=PROFILE,
    shell:
        "{PYTHON:q} -m zfu_lib.report.site --profile {params.profile}"
