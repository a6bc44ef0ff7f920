# Pictures and image-level labels: a dataset in its own format -> manifest.csv.


rule draw_shapes:
    output:
        directory(f"{BASE}/dataset"),
    log:
        f"{BASE}/logs/draw_shapes.log",
    benchmark:
        f"{BASE}/benchmarks/draw_shapes.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
        gpu=0,
    params:
        settings=CONFIG.dataset.shapes.model_dump_json(),
        code=stage_hash("beco.datasets.shapes"),
    message:
        "Drawing the embedded dataset"
    shell:
        "beco --log {log:q} draw-shapes --settings {params.settings:q} --output {output:q}"


rule manifest:
    input:
        dataset_files,
    output:
        manifest=f"{BASE}/manifest.csv",
        identity=f"{BASE}/manifest.json",
    log:
        f"{BASE}/logs/manifest.log",
    benchmark:
        f"{BASE}/benchmarks/manifest.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
        gpu=0,
    params:
        root=dataset_root(),
        settings=CONFIG.dataset.model_dump_json(exclude={"shapes"}),
        code=stage_hash("beco.datasets.voc"),
    message:
        "Reading and checking every picture, label and mask"
    shell:
        "beco --log {log:q} manifest --root {params.root:q} --settings {params.settings:q} --output {output.manifest:q}"
