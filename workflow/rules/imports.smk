# Stage one by another program: its files -> pseudo-labels with confidence.


from functools import cache

from beco.exchange.watch import source_token


def import_source(wildcards):
    """The folder that labels are imported from."""
    return CONFIG.labels[wildcards.labels].source.path


@cache
def import_token(labels):
    """What an import depends on besides the manifest: the files of its folder, looked at once."""
    path = Path(CONFIG.labels[labels].source.path)
    return source_token(path, Path(f"{BASE}/{labels}"), Path(MANIFEST))


rule import_labels:
    input:
        manifest=LISTED,
    output:
        f"{BASE}/{{labels}}/labels.h5",
    log:
        f"{BASE}/logs/import_labels.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/import_labels.{{labels}}.tsv"
    wildcard_constraints:
        labels=recipes("import"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(240),
        gpu=0,
        root=dataset_root(),
        source=import_source,
    params:
        source=lambda wildcards: import_token(wildcards.labels),
        options=import_options,
        watched=watched(),
        code=stage_hash("beco.exchange.imports"),
    message:
        "Importing the pseudo-labels `{wildcards.labels}`"
    shell:
        "beco --log {log:q} import-labels {resources.source:q} --manifest {input.manifest:q} --root {resources.root:q}"
        " {params.options:q} --watched {params.source} --output {output:q}"
