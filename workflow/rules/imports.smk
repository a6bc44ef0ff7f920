# Stage one by another program: its files -> pseudo-labels with confidence.


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
        source=lambda wildcards: CONFIG.labels[wildcards.labels].imported.path,
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
