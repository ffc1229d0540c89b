// SPDX-License-Identifier: Apache-2.0

package controllers

import kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

// applySmall lowers upstream's worker counts, which are for clusters of thousands of nodes. A worker is a waiting
// goroutine. Fewer workers save stacks, and bursts that a board of two to four cores cannot use.
func applySmall(s *kcmoptions.KubeControllerManagerOptions) {
	const few, one = 2, 1
	s.GarbageCollectorController.ConcurrentGCSyncs = few // each is two workers
	s.NamespaceController.ConcurrentNamespaceSyncs = few
	s.ResourceClaimController.ConcurrentSyncs = few
	s.DeviceTaintEvictionController.ConcurrentSyncs = few
	s.DeploymentController.ConcurrentDeploymentSyncs = few
	s.ReplicaSetController.ConcurrentRSSyncs = few
	s.StatefulSetController.ConcurrentStatefulSetSyncs = few
	s.DaemonSetController.ConcurrentDaemonSetSyncs = few
	s.JobController.ConcurrentJobSyncs = few
	s.CronJobController.ConcurrentCronJobSyncs = few
	s.EndpointSliceController.ConcurrentServiceEndpointSyncs = few
	s.EndpointController.ConcurrentEndpointSyncs = few
	s.EndpointSliceMirroringController.MirroringConcurrentServiceEndpointSyncs = one
	s.ReplicationController.ConcurrentRCSyncs = one
	s.EphemeralVolumeController.ConcurrentEphemeralVolumeSyncs = one
	s.ResourceQuotaController.ConcurrentResourceQuotaSyncs = few
	s.SAController.ConcurrentSATokenSyncs = one
	s.TTLAfterFinishedController.ConcurrentTTLSyncs = one
	s.HPAController.ConcurrentHorizontalPodAutoscalerSyncs = few
	s.ValidatingAdmissionPolicyStatusController.ConcurrentPolicySyncs = one
}
