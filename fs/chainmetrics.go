package fs

import (
	"syscall"
	"time"

	"varve/chain"
	"varve/fs/prom"
)

// diskMetric is a metric of what chain.Metrics tells.
func diskMetric(name, kind, help string, samples func(m *chain.Metrics, to *prom.Family)) metric {
	return metric{Metric{name, kind, help}, func(s *scrape, to *prom.Family) { samples(&s.disk, to) }}
}

// figure is a diskMetric of one sample.
func figure(name, kind, help string, value func(m *chain.Metrics) int64) metric {
	return diskMetric(name, kind, help, func(m *chain.Metrics, to *prom.Family) { to.Int(value(m)) })
}

func diskMetrics() []metric {
	return []metric{
		figure("varve_disk_size_bytes", prom.Gauge, "Size of disk.raw.", func(m *chain.Metrics) int64 { return m.Size }),
		diskMetric("varve_disk_read_only", prom.Gauge, "1 where the disk is mounted read-only.",
			func(m *chain.Metrics, to *prom.Family) { to.Bool(m.ReadOnly) }),
		diskMetric("varve_disk_failed", prom.Gauge, "1 when the disk takes no writes until it is mounted again, because writing back failed.",
			func(m *chain.Metrics, to *prom.Family) { to.Bool(m.Failed) }),
		diskMetric("varve_open_files", prom.Gauge,
			"Files that are open now: mode=write and mode=read of disk.raw, mode=read of layers and partitions.",
			func(m *chain.Metrics, to *prom.Family) {
				file, mode := prom.Label{Name: "file", Value: "disk"}, prom.Label{Name: "mode", Value: "write"}
				to.Int(int64(m.OpenWriting), file, mode)
				mode.Value = "read"
				to.Int(int64(m.OpenRead), file, mode)
				file.Value = "layer"
				to.Int(int64(m.OpenLayers), file, mode)
			}),

		figure("varve_cache_hits_total", prom.Counter, "Looks at what is below the leaf that were answered from memory.",
			func(m *chain.Metrics) int64 { return m.Cache.Hits }),
		figure("varve_cache_misses_total", prom.Counter, "Looks at what is below the leaf for which tables of layers were read, 16 MiB of the disk each.",
			func(m *chain.Metrics) int64 { return m.Cache.Misses }),
		figure("varve_cache_evictions_total", prom.Counter, "Pieces of 16 MiB that were forgotten for want of room.",
			func(m *chain.Metrics) int64 { return m.Cache.Evictions }),
		figure("varve_cache_bytes", prom.Gauge, "Memory that these pieces take.", func(m *chain.Metrics) int64 { return m.Cache.Bytes }),
		figure("varve_cache_limit_bytes", prom.Gauge, "Memory that they may take.", func(m *chain.Metrics) int64 { return m.Cache.Limit }),

		figure("varve_allocated_clusters_total", prom.Counter, "Clusters of layers' files that writes and jobs have taken.",
			func(m *chain.Metrics) int64 { return m.Clusters }),
		figure("varve_allocated_bytes_total", prom.Counter, "Bytes that writes and jobs have made data of a layer: whole subclusters.",
			func(m *chain.Metrics) int64 { return m.Allocated }),
		figure("varve_discarded_bytes_total", prom.Counter, "Bytes of a layer's data that became zeros by discards and jobs: whole subclusters.",
			func(m *chain.Metrics) int64 { return m.Discarded }),
		figure("varve_punched_bytes_total", prom.Counter, "Bytes given back to the host after that, and of what jobs have moved; not those of files that were removed.",
			func(m *chain.Metrics) int64 { return m.Punched }),

		diskMetric("varve_flush_duration_seconds", prom.Histogram,
			"How long it took to make a layer durable, where there was anything to write, for a guest, a snapshot, a job or of itself.",
			func(m *chain.Metrics, to *prom.Family) { to.Distribution(m.Flushes) }),
		figure("varve_flush_errors_total", prom.Counter, "How many of these failed.", func(m *chain.Metrics) int64 { return m.FlushErrors }),
		figure("varve_unflushed_table_bytes", prom.Gauge, "Tables of the leaf in memory that wait to be written.",
			func(m *chain.Metrics) int64 { return m.Unflushed }),
		diskMetric("varve_snapshot_stall_seconds", prom.Histogram, "How long a snapshot kept writers waiting; its count is that of snapshots.",
			func(m *chain.Metrics, to *prom.Family) { to.Distribution(m.Stalls) }),
	}
}

func jobMetrics() []metric {
	job := func(samples func(j *chain.JobStatus, to *prom.Family, kind prom.Label)) func(m *chain.Metrics, to *prom.Family) {
		return func(m *chain.Metrics, to *prom.Family) {
			if m.Job != nil && m.Job.State == chain.JobRunning {
				samples(m.Job, to, prom.Label{Name: "kind", Value: m.Job.Kind.String()})
			}
		}
	}
	return []metric{
		diskMetric("varve_jobs_total", prom.Counter, "Jobs that have ended, done, cancelled or failed: flattens, and as delete each merge of a layer that nobody needs any more.",
			func(m *chain.Metrics, to *prom.Family) {
				for _, end := range chain.JobEnds() {
					to.Int(m.Jobs[end], prom.Label{Name: "kind", Value: end.Kind.String()}, prom.Label{Name: "state", Value: end.State.String()})
				}
			}),
		diskMetric("varve_job_running", prom.Gauge, "1 while a job is under way.",
			func(m *chain.Metrics, to *prom.Family) { to.Bool(m.Job != nil && m.Job.State == chain.JobRunning) }),
		diskMetric("varve_job_done_bytes", prom.Gauge, "How far the job under way is.",
			job(func(j *chain.JobStatus, to *prom.Family, kind prom.Label) { to.Int(j.DoneBytes, kind) })),
		diskMetric("varve_job_size_bytes", prom.Gauge, "How much it has to deal with.",
			job(func(j *chain.JobStatus, to *prom.Family, kind prom.Label) { to.Int(j.TotalBytes, kind) })),
		diskMetric("varve_job_bytes_per_second", prom.Gauge, "How fast it has copied in the last seconds.",
			job(func(j *chain.JobStatus, to *prom.Family, kind prom.Label) { to.Int(j.Rate, kind) })),
		diskMetric("varve_job_limit_bytes_per_second", prom.Gauge, "How fast it may copy, where that is limited.",
			job(func(j *chain.JobStatus, to *prom.Family, kind prom.Label) {
				if j.RateLimit > 0 {
					to.Int(j.RateLimit, kind)
				}
			})),
		diskMetric("varve_job_left_seconds", prom.Gauge, "How long it will still take, where that can be told.",
			job(func(j *chain.JobStatus, to *prom.Family, kind prom.Label) {
				if j.SecondsLeft != nil {
					to.Seconds(time.Duration(*j.SecondsLeft)*time.Second, kind)
				}
			})),
	}
}

func layerMetrics() []metric {
	each := func(value func(l *chain.LayerMetrics) *int64) func(m *chain.Metrics, to *prom.Family) {
		return func(m *chain.Metrics, to *prom.Family) {
			for i := range m.Layers {
				l := &m.Layers[i]
				if v := value(l); v != nil {
					name := l.Name
					if l.State == chain.StateLeaf {
						name = chain.LeafName
					}
					to.Int(*v, prom.Label{Name: "layer", Value: l.ID}, prom.Label{Name: "name", Value: name})
				}
			}
		}
	}
	return []metric{
		diskMetric("varve_layers", prom.Gauge, "How many layers there are, of the whole tree.",
			func(m *chain.Metrics, to *prom.Family) {
				count := map[chain.State]int64{}
				for _, l := range m.Layers {
					count[l.State]++
				}
				for _, state := range chain.States() {
					to.Int(count[state], prom.Label{Name: "state", Value: state.String()})
				}
			}),
		figure("varve_chain_depth", prom.Gauge, "How many layers disk.raw is read through, itself included.", func(m *chain.Metrics) int64 {
			for _, l := range m.Layers {
				if l.State == chain.StateLeaf {
					return int64(l.Depth)
				}
			}
			return 0
		}),
		diskMetric("varve_layer_own_bytes", prom.Gauge, "Bytes of the disk that a layer itself holds; absent until a look at status has had it counted.",
			each(func(l *chain.LayerMetrics) *int64 { return l.Own })),
		diskMetric("varve_layer_host_bytes", prom.Gauge, "What a layer's file takes on the host.",
			each(func(l *chain.LayerMetrics) *int64 { return l.Host })),
		diskMetric("varve_layer_frees_bytes", prom.Gauge, "What a delete of the layer would give back; absent until that was counted.",
			each(func(l *chain.LayerMetrics) *int64 { return l.Frees })),
		diskMetric("varve_layer_damaged_bytes", prom.Gauge, "Bytes of the disk that cannot be read from a layer, as far as somebody has looked; its own bytes are more, perhaps.",
			each(func(l *chain.LayerMetrics) *int64 { return &l.Damaged })),
		figure("varve_set_aside_bytes", prom.Gauge, "What the leaf that the last revert set aside takes on the host.", func(m *chain.Metrics) int64 {
			for _, l := range m.Layers {
				if l.SetAside && l.Host != nil {
					return *l.Host
				}
			}
			return 0
		}),
	}
}

func hostMetrics() []metric {
	host := func(name, help string, blocks func(st *syscall.Statfs_t) uint64) metric {
		return metric{Metric{name, prom.Gauge, help}, func(s *scrape, to *prom.Family) {
			if s.host != nil {
				to.Int(int64(blocks(s.host)) * s.host.Frsize)
			}
		}}
	}
	return []metric{
		host("varve_host_free_bytes", "Room on the host's file system that holds the disk, for users who are not root.",
			func(st *syscall.Statfs_t) uint64 { return st.Bavail }),
		host("varve_host_size_bytes", "Size of that file system.", func(st *syscall.Statfs_t) uint64 { return st.Blocks }),
	}
}
