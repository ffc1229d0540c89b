// SPDX-License-Identifier: Apache-2.0

package content

import "github.com/prometheus/client_golang/prometheus"

var (
	blobsDesc = prometheus.NewDesc("coracle_content_blobs_total",
		"Layers and configurations of images that pulls got, from other machines of the cluster (peers) or from registries (outside).",
		[]string{"origin"}, nil)
	bytesDesc     = prometheus.NewDesc("coracle_content_bytes_total", "Bytes of coracle_content_blobs_total.", []string{"origin"}, nil)
	sentBlobsDesc = prometheus.NewDesc("coracle_content_sent_blobs_total", "Layers and configurations that other machines got from this one.",
		nil, nil)
	sentBytesDesc = prometheus.NewDesc("coracle_content_sent_bytes_total", "Bytes that other machines got from this one.", nil, nil)
	refusedDesc   = prometheus.NewDesc("coracle_content_refused_blobs_total",
		"Blobs of other machines that did not have the digest that was asked for.", nil, nil)
)

// Describe implements prometheus.Collector.
func (*Counters) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{blobsDesc, bytesDesc, sentBlobsDesc, sentBytesDesc, refusedDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Counters) Collect(to chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, value int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	for origin, from := range map[string]*Count{"peers": &c.Peers, "outside": &c.Outside} {
		count(blobsDesc, from.Blobs.Load(), origin)
		count(bytesDesc, from.Bytes.Load(), origin)
	}
	count(sentBlobsDesc, c.Sent.Blobs.Load())
	count(sentBytesDesc, c.Sent.Bytes.Load())
	count(refusedDesc, c.Refused.Load())
}
