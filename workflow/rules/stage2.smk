# Stage two: pseudo-labels -> segmentation networks -> predictions.


rule train_segmenter:
    input:
        pseudo_labels,
        masks_in_training,
        starting_weights,
        manifest=LISTED,
    output:
        networks=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/networks.safetensors",
        training=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/training.json",
        history=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/history.csv",
    log:
        f"{BASE}/logs/train_segmenter.{{labels}}.{{experiment}}.seed{{seed}}.log",
    benchmark:
        f"{BASE}/benchmarks/train_segmenter.{{labels}}.{{experiment}}.seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads * COMPUTE.devices
    resources:
        mem_mb=growing(16000),
        runtime=2880,
        gpu=GPU * COMPUTE.devices,
        device=COMPUTE.device,
        workers=COMPUTE.workers,
        own=threads_of_a_process,
        spread=spread_options(),
        root=dataset_root(),
        prediction=CONFIG.prediction.model_dump_json(),  # no trigger: only kept beside the networks
    params:
        recipe=lambda wildcards: experiment_of(wildcards).recipe,
        network=lambda wildcards: network_of(wildcards).model_dump_json(),
        settings=lambda wildcards: experiment_of(wildcards).training.model_dump_json(),
        inputs=label_and_weight_options,
        folder=subpath(output.networks, parent=True),
        watched=watched_in_training,
        code=training_code,
    message:
        "Training `{wildcards.experiment}` on `{wildcards.labels}`, seed {wildcards.seed}"
    shell:
        "beco --log {log:q} train --manifest {input.manifest:q} --root {resources.root:q} --recipe {params.recipe}"
        " {params.inputs:q} --network {params.network:q} --settings {params.settings:q} --seed {wildcards.seed}"
        " --output {params.folder:q} --replace"
        " --prediction {resources.prediction:q}"
        " --device {resources.device} --workers {resources.workers} --threads {resources.own}"
        " {resources.spread}"


rule predict:
    input:
        manifest=LISTED,
        networks=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/networks.safetensors",
    output:
        directory(f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/predictions"),
    log:
        f"{BASE}/logs/predict.{{labels}}.{{experiment}}.seed{{seed}}.log",
    benchmark:
        f"{BASE}/benchmarks/predict.{{labels}}.{{experiment}}.seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(6000 + (1000 * COMPUTE.threads if CONFIG.prediction.crf else 0)),
        runtime=growing(240),
        gpu=GPU,
        device=COMPUTE.device,
        root=dataset_root(),
    params:
        settings=CONFIG.prediction.averaged.model_dump_json(),
        split="all" if CONFIG.dataset.format == "folder" else "val",
        watched=watched(),
        code=stage_hash("beco.stage2.predict"),
    message:
        "Predicting with `{wildcards.experiment}` on `{wildcards.labels}`, seed {wildcards.seed}"
    shell:
        "beco --log {log:q} predict-split --manifest {input.manifest:q} --root {resources.root:q} --networks {input.networks:q}"
        " --settings {params.settings:q} --split {params.split} --output {output:q}"
        " --device {resources.device} --threads {threads}"


# The same with the first network alone, in a folder of its own.
use rule predict as predict_first with:
    output:
        directory(f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/first/predictions"),
    log:
        f"{BASE}/logs/predict_first.{{labels}}.{{experiment}}.seed{{seed}}.log",
    benchmark:
        f"{BASE}/benchmarks/predict_first.{{labels}}.{{experiment}}.seed{{seed}}.tsv"
    params:
        settings=of_the_first(),
    message:
        "Predicting with one network of `{wildcards.experiment}` on `{wildcards.labels}`, seed {wildcards.seed}"
