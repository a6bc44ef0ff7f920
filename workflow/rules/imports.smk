# Stage one by another program: its files -> pseudo-labels with confidence.


rule import_labels:
    input:
        lambda wildcards: existing([CONFIG.labels[wildcards.labels].source.path]),
        manifest=f"{BASE}/manifest.csv",
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
    params:
        root=dataset_root(),
        source=lambda wildcards: CONFIG.labels[wildcards.labels].source.path,
        options=import_options,
        code=stage_hash("beco.stage1.imports"),
    message:
        "Importing the pseudo-labels `{wildcards.labels}`"
    shell:
        "beco --log {log:q} import-labels {params.source:q} --manifest {input.manifest:q} --root {params.root:q}"
        " {params.options:q} --output {output:q}"
