# Scores, tables and the report.


rule evaluate:
    input:
        drawn_masks,
        manifest=LISTED,
        predictions=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/predictions",
    output:
        metrics=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/metrics.json",
        tables=multiext(
            f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/",
            "per_class.csv",
            "per_image.csv",
            "per_image_class.csv",
        ),
    log:
        f"{BASE}/logs/evaluate.{{labels}}.{{experiment}}.seed{{seed}}.log",
    benchmark:
        f"{BASE}/benchmarks/evaluate.{{labels}}.{{experiment}}.seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(3000),
        runtime=growing(120),
        gpu=0,
        root=dataset_root(),
    params:
        settings=CONFIG.prediction.averaged.model_dump_json(),
        folder=subpath(output.metrics, parent=True),
        watched=watched("val_masks"),
        code=stage_hash("beco.evaluation.scores.evaluate"),
    message:
        "Scoring `{wildcards.experiment}` on `{wildcards.labels}`, seed {wildcards.seed}"
    shell:
        "beco --log {log:q} evaluate --manifest {input.manifest:q} --root {resources.root:q}"
        " --predictions {input.predictions:q} --settings {params.settings:q} --output {params.folder:q}"
        " --threads {threads}"


use rule evaluate as evaluate_first with:
    input:
        drawn_masks,
        manifest=LISTED,
        predictions=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/first/predictions",
    output:
        metrics=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/first/metrics.json",
        tables=multiext(
            f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/first/",
            "per_class.csv",
            "per_image.csv",
            "per_image_class.csv",
        ),
    log:
        f"{BASE}/logs/evaluate_first.{{labels}}.{{experiment}}.seed{{seed}}.log",
    benchmark:
        f"{BASE}/benchmarks/evaluate_first.{{labels}}.{{experiment}}.seed{{seed}}.tsv"
    params:
        settings=of_the_first(),
    message:
        "Scoring one network of `{wildcards.experiment}` on `{wildcards.labels}`, seed {wildcards.seed}"


rule evaluate_labels:
    input:
        drawn_masks,
        manifest=LISTED,
        labels=f"{BASE}/{{labels}}/labels.h5",
    output:
        metrics=f"{BASE}/{{labels}}/quality/metrics.json",
        tables=multiext(
            f"{BASE}/{{labels}}/quality/",
            "per_class.csv",
            "per_image.csv",
            "per_image_class.csv",
        ),
    log:
        f"{BASE}/logs/evaluate_labels.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/evaluate_labels.{{labels}}.tsv"
    conda:
        ENVIRONMENT
    threads: COMPUTE.threads
    resources:
        mem_mb=growing(3000),
        runtime=growing(120),
        gpu=0,
        root=dataset_root(),
    params:
        options=quality_options(),
        folder=subpath(output.metrics, parent=True),
        watched=watched("train_masks"),
        code=stage_hash("beco.evaluation.scores.quality"),
    message:
        "Scoring the pseudo-labels `{wildcards.labels}` on the training pictures"
    shell:
        "beco --log {log:q} evaluate-labels --manifest {input.manifest:q} --root {resources.root:q}"
        " --labels {input.labels:q} {params.options:q} --output {params.folder:q} --threads {threads}"


rule sweep_labels:
    input:
        drawn_masks,
        manifest=LISTED,
        cams=class_maps,
    output:
        f"{BASE}/{{labels}}/quality/sweep.csv",
    log:
        f"{BASE}/logs/sweep_labels.{{labels}}.log",
    benchmark:
        f"{BASE}/benchmarks/sweep_labels.{{labels}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(720),
        gpu=0,
        root=dataset_root(),
    params:
        settings=sweep_settings,
        backgrounds=sweep_options(),
        watched=watched("train_masks"),
        code=stage_hash("beco.evaluation.scores.sweep"),
    message:
        "Scoring the pseudo-labels `{wildcards.labels}` at several background scores"
    shell:
        "beco --log {log:q} sweep-labels --manifest {input.manifest:q} --root {resources.root:q} --cams {input.cams:q}"
        " --settings {params.settings:q} {params.backgrounds:q} --output {output:q} --threads {threads}"


rule tabulate:
    input:
        all_runs("{run}/metrics.json"),
        all_runs("{run}/training.json"),
        first_scores(CONFIG.experiments),
        label_quality(),
        all_sources(f"{BASE}/{{source}}/classifier/classifier.json"),
    output:
        report(
            directory(f"{BASE}/tables"),
            patterns=["{name}.csv"],
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{name}"},
        ),
    log:
        f"{BASE}/logs/tabulate.log",
    benchmark:
        f"{BASE}/benchmarks/tabulate.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
        gpu=0,
    params:
        runs=run_options(CONFIG.experiments),
        labels=label_options(LABELS),
        published=published_options(CONFIG.experiments),
        sources=source_options(),
        code=stage_hash("beco.evaluation.tables.table_files", "schema/published.csv"),
    message:
        "Tables"
    shell:
        "beco --log {log:q} tables {params.runs:q} {params.labels:q} {params.published:q}"
        " {params.sources:q} --output {output:q}"


rule compare:
    input:
        compared_files,
    output:
        table=report(
            f"{BASE}/comparisons/{{comparison}}.csv",
            caption="../report/comparison.rst",
            category="Comparisons",
            labels={"comparison": "{comparison}"},
        ),
        printed=multiext(f"{BASE}/comparisons/{{comparison}}", ".md", ".tex"),
    log:
        f"{BASE}/logs/compare.{{comparison}}.log",
    benchmark:
        f"{BASE}/benchmarks/compare.{{comparison}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
        gpu=0,
    params:
        options=comparison_options,
        code=stage_hash("beco.evaluation.tables.comparisons", "schema/published.csv"),
    message:
        "Comparison `{wildcards.comparison}`"
    shell:
        "beco --log {log:q} comparison {params.options:q} --output {output.table:q}"


rule report:
    input:
        all_runs("{run}/metrics.json"),
        first_scores(CONFIG.experiments),
        all_runs("{run}/history.csv"),
        all_runs("{run}/predictions"),
        label_quality(),
        expand(f"{BASE}/{{labels}}/labels.h5", labels=LABELS),
        all_sources(f"{BASE}/{{source}}/cams.h5"),
        all_sources(f"{BASE}/{{source}}/classifier/classifier.json"),
        manifest=LISTED,
    output:
        report(f"{BASE}/report.html", caption="../report/report.rst", category="Report"),
    log:
        f"{BASE}/logs/report.log",
    benchmark:
        f"{BASE}/benchmarks/report.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(30),
        gpu=0,
        root=dataset_root(),
    params:
        name=CONFIG.dataset.name,
        gallery=CONFIG.gallery,
        runs=run_options(CONFIG.experiments),
        labels=label_options(LABELS),
        published=published_options(CONFIG.experiments),
        comparisons=comparisons_text(),
        sources=source_options(),
        watched=watched("train_masks", "val_masks"),
        code=stage_hash("beco.evaluation.report.report", *REPORT_FILES),
    message:
        "Report"
    shell:
        "beco --log {log:q} report --manifest {input.manifest:q} --root {resources.root:q}"
        " {params.sources:q} {params.runs:q} {params.labels:q} {params.published:q}"
        " --comparisons {params.comparisons:q} --gallery {params.gallery} --title {params.name:q} --output {output:q}"


rule archive:
    input:
        manifest=LISTED,
        predictions=f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/predictions",
    output:
        f"{BASE}/{{labels}}/{{experiment}}/seed{{seed}}/archive.tar.gz",
    log:
        f"{BASE}/logs/archive.{{labels}}.{{experiment}}.seed{{seed}}.log",
    benchmark:
        f"{BASE}/benchmarks/archive.{{labels}}.{{experiment}}.seed{{seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=growing(1000),
        runtime=growing(30),
        gpu=0,
    params:
        image_set="test" if CONFIG.dataset.val == "test" else "val",
        watched=watched(),
        code=stage_hash("beco.evaluation.tables.archive"),
    message:
        "Packing the predictions of `{wildcards.experiment}` on `{wildcards.labels}`, seed {wildcards.seed}"
    shell:
        "beco --log {log:q} archive {input.predictions:q} --manifest {input.manifest:q} --set {params.image_set}"
        " --output {output:q}"


# Names for parts of the road: `snakemake --cores all pseudo_labels`, for one.


rule classifiers:
    input:
        all_sources(f"{BASE}/{{source}}/classifier/classifier.json"),


rule pseudo_labels:
    input:
        label_quality(),


rule tables:
    input:
        all_tables(),


rule scores:
    input:
        all_runs("{run}/metrics.json"),
        first_scores(CONFIG.experiments),


rule archives:
    input:
        all_runs("{run}/archive.tar.gz"),
