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
        drawn_pictures(),
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
        mem_mb=growing(8000 if CONFIG.dataset.format == "coco" else 2000),
        runtime=growing(60),
        gpu=0,
        options=WATCHED.options(),
    params:
        settings=watch.settings(CONFIG.dataset),
        watched=watched(),
        code=stage_hash("beco.datasets.formats"),
    message:
        "Reading and checking every picture, label and mask"
    shell:
        "beco --log {log:q} manifest {resources.options} --settings {params.settings:q}"
        " --output {output.manifest:q}"


rule render_masks:
    # Only the mark at the end is Snakemake's: it would remove the masks before it goes on after a kill.
    output:
        touch(f"{BASE}/masks/complete"),
    log:
        f"{BASE}/logs/render_masks.log",
    benchmark:
        f"{BASE}/benchmarks/render_masks.tsv"
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),
        gpu=0,
        root=dataset_root(),
    params:
        watched=watched(),
        settings=CONFIG.dataset.model_dump_json(
            include={
                **dict.fromkeys(("format", "train", "val", "classes"), True),
                "coco": CONFIG.dataset.coco.mask_keys(),
            }
        ),
        folder=subpath(output[0], parent=True),
        code=stage_hash("beco.datasets.coco"),
    message:
        "Drawing the masks from the outlines of the instances"
    shell:
        "beco --log {log:q} render-masks --root {resources.root:q} --settings {params.settings:q}"
        " --output {params.folder:q} --threads {threads}"
