# Stage one: image-level labels -> localiser -> score maps -> pseudo-labels with confidence.


rule train_classifier:
    input:
        localiser_starts,
        manifest=LISTED,
    output:
        network=f"{BASE}/{{source}}/classifier/classifier.safetensors",
        scores=f"{BASE}/{{source}}/classifier/classifier.json",
        history=f"{BASE}/{{source}}/classifier/history.csv",
    log:
        f"{BASE}/logs/train_classifier.{{source}}.log",
    benchmark:
        f"{BASE}/benchmarks/train_classifier.{{source}}.tsv"
    cache: CACHED
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(8000),
        runtime=720,
        gpu=GPU,
        root=dataset_root(),
        device=COMPUTE.device,
        workers=COMPUTE.workers,
        saliency=saliency_option,
    params:
        method=lambda wildcards: source_of(wildcards).method,
        settings=lambda wildcards: source_of(wildcards).classifier.model_dump_json(),
        options=lambda wildcards: json.dumps(source_of(wildcards).parted_options()[0]),
        inputs=localiser_inputs,
        watched=watched_by_localiser,
        code=localiser_code("beco.stage1.train"),
    message:
        "Training the localiser `{wildcards.source}`"
    shell:
        "beco --log {log:q} train-classifier --manifest {input.manifest:q} --root {resources.root:q}"
        " --method {params.method} --options {params.options:q} {params.inputs:q} {resources.saliency}"
        ' --settings {params.settings:q} --output "$(dirname {output.network:q})" --replace'
        " --device {resources.device} --workers {resources.workers} --threads {threads}"


rule infer_cams:
    input:
        map_labels,
        manifest=LISTED,
        classifier=f"{BASE}/{{source}}/classifier/classifier.safetensors",
    output:
        temp(f"{BASE}/shards/cams.{{source}}.{{scatteritem}}.h5"),
    log:
        f"{BASE}/logs/infer_cams.{{source}}.{{scatteritem}}.log",
    benchmark:
        f"{BASE}/benchmarks/infer_cams.{{source}}.{{scatteritem}}.tsv"
    cache: CACHED
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(6000),
        runtime=growing(240),
        gpu=GPU,
        root=dataset_root(),
        device=COMPUTE.device,
        saliency=map_saliency_option,
    params:
        settings=lambda wildcards: source_of(wildcards).cam.model_dump_json(),
        inputs=map_inputs,
        shard="{scatteritem}",
        watched=watched_by_maps,
        code=localiser_code("beco.stage1.views"),
    message:
        "Score maps of `{wildcards.source}`, shard {wildcards.scatteritem}"
    shell:
        "beco --log {log:q} cams --manifest {input.manifest:q} --root {resources.root:q} --classifier {input.classifier:q}"
        " --settings {params.settings:q} {params.inputs:q} {resources.saliency} --shard {params.shard:q}"
        " --output {output:q} --device {resources.device} --threads {threads}"


rule gather_cams:
    input:
        lambda wildcards: gather.cams(
            f"{BASE}/shards/cams.{wildcards.source}.{{scatteritem}}.h5"
        ),
    output:
        f"{BASE}/{{source}}/cams.h5",
    log:
        f"{BASE}/logs/gather_cams.{{source}}.log",
    benchmark:
        f"{BASE}/benchmarks/gather_cams.{{source}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
        gpu=0,
    params:
        code=stage_hash("beco.artifacts.store"),
    message:
        "Joining the shards of the score maps of `{wildcards.source}`"
    shell:
        "beco --log {log:q} gather {input:q} --output {output:q}"


rule make_labels:
    input:
        manifest=LISTED,
        cams=class_maps,
    output:
        temp(f"{BASE}/shards/labels.{{labels}}.{{scatteritem}}.h5"),
    log:
        f"{BASE}/logs/make_labels.{{labels}}.{{scatteritem}}.log",
    benchmark:
        f"{BASE}/benchmarks/make_labels.{{labels}}.{{scatteritem}}.tsv"
    cache: CACHED
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(720),
        gpu=0,
        root=dataset_root(),
    params:
        settings=label_settings,
        shard="{scatteritem}",
        watched=watched(),
        code=stage_hash("beco.stage1.refine.labels"),
    message:
        "Pseudo-labels `{wildcards.labels}`, shard {wildcards.scatteritem}"
    shell:
        "beco --log {log:q} labels --manifest {input.manifest:q} --root {resources.root:q} --cams {input.cams:q}"
        " --settings {params.settings:q} --shard {params.shard:q} --output {output:q}"


rule gather_labels:
    input:
        lambda wildcards: gather.labels(
            f"{BASE}/shards/labels.{wildcards.labels}.{{scatteritem}}.h5"
        ),
    output:
        f"{BASE}/{{labels}}/labels.h5",
    log:
        f"{BASE}/logs/gather_labels.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/gather_labels.{{labels}}.tsv"
    wildcard_constraints:
        labels=recipes("none", "crf", "irn"),
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
        gpu=0,
    params:
        code=stage_hash("beco.artifacts.store"),
    message:
        "Joining the shards of the pseudo-labels `{wildcards.labels}`"
    shell:
        "beco --log {log:q} gather {input:q} --output {output:q}"


# With refine: irn. Confident labels -> pairs of pixels -> IRN -> CAMs after its random walk.


use rule make_labels as make_pairs with:
    input:
        manifest=LISTED,
        cams=cams_of,
    output:
        temp(f"{BASE}/shards/pairs.{{labels}}.{{scatteritem}}.h5"),
    log:
        f"{BASE}/logs/make_pairs.{{labels}}.{{scatteritem}}.log",
    benchmark:
        f"{BASE}/benchmarks/make_pairs.{{labels}}.{{scatteritem}}.tsv"
    params:
        settings=pair_settings,
        shard="{scatteritem}",
        watched=watched(),
        code=stage_hash("beco.stage1.refine.labels"),
    message:
        "Confident labels for the IRN of `{wildcards.labels}`, shard {wildcards.scatteritem}"


use rule gather_labels as gather_pairs with:
    input:
        lambda wildcards: gather.labels(
            f"{BASE}/shards/pairs.{wildcards.labels}.{{scatteritem}}.h5"
        ),
    output:
        f"{BASE}/{{labels}}/pairs.h5",
    log:
        f"{BASE}/logs/gather_pairs.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/gather_pairs.{{labels}}.tsv"
    message:
        "Joining the shards of the confident labels for the IRN of `{wildcards.labels}`"


rule train_irn:
    input:
        irn_start,
        manifest=LISTED,
        classifier=classifier_of,
        labels=pair_labels,
    output:
        network=f"{BASE}/{{labels}}/irn/irn.safetensors",
        summary=f"{BASE}/{{labels}}/irn/irn.json",
    log:
        f"{BASE}/logs/train_irn.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/train_irn.{{labels}}.tsv"
    cache: CACHED
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(16000),
        runtime=1440,
        gpu=GPU,
        root=dataset_root(),
        device=COMPUTE.device,
        workers=COMPUTE.workers,
    params:
        settings=irn_settings("training"),
        watched=watched(),
        code=stage_hash("beco.stage1.refine.irn_train"),
    message:
        "Training the inter-pixel relation network of `{wildcards.labels}`"
    shell:
        "beco --log {log:q} train-irn --manifest {input.manifest:q} --root {resources.root:q}"
        " --classifier {input.classifier:q} --labels {input.labels:q} --settings {params.settings:q}"
        ' --output "$(dirname {output.network:q})" --replace'
        " --device {resources.device} --workers {resources.workers} --threads {threads}"


rule random_walk:
    input:
        manifest=LISTED,
        cams=cams_of,
        network=f"{BASE}/{{labels}}/irn/irn.safetensors",
    output:
        temp(f"{BASE}/shards/scores.{{labels}}.{{scatteritem}}.h5"),
    log:
        f"{BASE}/logs/random_walk.{{labels}}.{{scatteritem}}.log",
    benchmark:
        f"{BASE}/benchmarks/random_walk.{{labels}}.{{scatteritem}}.tsv"
    cache: CACHED
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(6000),
        runtime=growing(720),
        gpu=GPU,
        root=dataset_root(),
        device=COMPUTE.device,
    params:
        settings=irn_settings("walk"),
        shard="{scatteritem}",
        watched=watched(),
        code=stage_hash("beco.stage1.refine.irn_walk"),
    message:
        "IRN's random walk for `{wildcards.labels}`, shard {wildcards.scatteritem}"
    shell:
        "beco --log {log:q} refine --manifest {input.manifest:q} --root {resources.root:q} --cams {input.cams:q}"
        " --irn {input.network:q} --settings {params.settings:q} --shard {params.shard:q} --output {output:q}"
        " --device {resources.device} --threads {threads}"


rule gather_scores:
    input:
        lambda wildcards: gather.cams(
            f"{BASE}/shards/scores.{wildcards.labels}.{{scatteritem}}.h5"
        ),
    output:
        f"{BASE}/{{labels}}/scores.h5",
    log:
        f"{BASE}/logs/gather_scores.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/gather_scores.{{labels}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
        gpu=0,
    params:
        code=stage_hash("beco.artifacts.store"),
    message:
        "Joining the shards of the scores of `{wildcards.labels}`"
    shell:
        "beco --log {log:q} gather {input:q} --output {output:q}"
