metadata name = 'App'
metadata description = 'One container app with gridfan, in one of its roles.'

import { referenceType } from 'types.bicep'

@description('Required. Name of the app.')
@minLength(2)
@maxLength(32)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

@description('Required. Resource id of the Container Apps environment.')
param environmentId string

@description('Required. Image of gridfan.')
param image string

@description('Optional. Registry of the image where the identity is needed to pull; empty where anybody may.')
param registryServer string = ''

@description('Required. Resource id of the identity of the app. It may read the key vault, and pull from the registry.')
param identityId string

@description('Required. Client id of that identity.')
param identityClientId string

@description('Required. Address of the key vault, with a slash at its end.')
param vaultUri string

@description('Required. What this app does: everything, let events in, or deliver them.')
@allowed(['all', 'router', 'subscribers'])
param role string

@description('Required. The content of gridfan.yaml.')
@secure()
param configuration string

@description('Required. Whether the password of the NATS user gridfan is in the key vault, as nats-gridfan-password.')
param natsPassword bool

@description('Required. Whether the authority of the NATS servers\' certificates is in the key vault, as nats-ca.')
param natsPrivateCa bool

@description('Optional. Further secrets of the key vault that the configuration refers to.')
param references referenceType[] = []

@description('Required. Whether the public listener is on the Internet.')
param ingress bool

@description('Optional. Networks that may reach it, as in 203.0.113.0/24. Everybody if there are none.')
param allowedNetworks string[] = []

@description('Required. Cores of a replica, as a decimal number. It has two GiB of memory for each.')
@allowed(['0.25', '0.5', '0.75', '1.0', '1.25', '1.5', '1.75', '2.0', '4.0'])
param cpu string

@description('Required. Least number of replicas.')
@minValue(1)
@maxValue(30)
param minReplicas int

@description('Required. Most replicas.')
@minValue(1)
@maxValue(300)
param maxReplicas int

@description('Optional. Requests under way in one replica above which there is another; 0 for no such rule.')
@minValue(0)
param concurrentRequests int = 0

@description('Optional. Subscribers after whose waiting events the number of replicas goes.')
param lagConsumers string[] = []

@description('Optional. Monitoring address of a NATS server, as in 10.20.4.4:8222; required with lagConsumers.')
param lagEndpoint string = ''

@description('Optional. Waiting events for one replica.')
@minValue(1)
param lagThreshold int = 1000

var memory = {
  '0.25': '0.5Gi'
  '0.5': '1Gi'
  '0.75': '1.5Gi'
  '1.0': '2Gi'
  '1.25': '2.5Gi'
  '1.5': '3Gi'
  '1.75': '3.5Gi'
  '2.0': '4Gi'
  '4.0': '8Gi'
}

var publicPort = 8080
// Without an ingress: only the platform's probes reach it, and what runs in the
// replica.
var adminPort = 8081

// What comes from the key vault into the environment.
var variables = concat(
  [{ name: 'gridfan-admin-token', variable: 'GRIDFAN_ADMIN_TOKEN' }],
  natsPassword ? [{ name: 'nats-gridfan-password', variable: 'GRIDFAN_NATS_PASSWORD' }] : [],
  references
)
var vaultSecrets = concat(map(variables, v => v.name), natsPrivateCa ? ['nats-ca'] : [])

var restrictions = [
  for (network, i) in allowedNetworks: { name: 'allowed-${i}', ipAddressRange: network, action: 'Allow' }
]

// A volume of another name is another revision: replicas read their configuration
// when they start.
var configurationVolume = 'config-${uniqueString(configuration)}'
var dataVolume = 'data'

resource app 'Microsoft.App/containerApps@2026-01-01' = {
  name: name
  location: location
  tags: tags
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    environmentId: environmentId
    workloadProfileName: 'Consumption'
    configuration: {
      activeRevisionsMode: 'Single'
      maxInactiveRevisions: 10
      ingress: ingress
        ? {
            external: true
            targetPort: publicPort
            transport: 'auto'
            allowInsecure: false
            ipSecurityRestrictions: restrictions
          }
        : null
      registries: empty(registryServer) ? [] : [{ server: registryServer, identity: identityId }]
      secrets: concat(
        [{ name: 'gridfan-yaml', value: configuration }],
        map(vaultSecrets, secret => {
          name: secret
          keyVaultUrl: '${vaultUri}secrets/${secret}'
          identity: identityId
        })
      )
    }
    template: {
      // New requests are refused at SIGTERM; deliveries under way may end.
      terminationGracePeriodSeconds: 60
      containers: [
        {
          name: 'gridfan'
          image: image
          args: ['serve', '-c', '/etc/gridfan/gridfan.yaml', '--role', role, '--log-format', 'json']
          env: concat(
            [{ name: 'AZURE_CLIENT_ID', value: identityClientId }],
            map(variables, v => { name: v.variable, secretRef: v.name })
          )
          resources: { cpu: json(cpu), memory: memory[cpu] }
          probes: [
            {
              type: 'Startup'
              httpGet: { path: '/livez', port: adminPort }
              periodSeconds: 5
              timeoutSeconds: 5
              failureThreshold: 10
            }
            {
              type: 'Liveness'
              httpGet: { path: '/livez', port: adminPort }
              periodSeconds: 10
              timeoutSeconds: 5
              failureThreshold: 6
            }
            {
              type: 'Readiness'
              httpGet: { path: '/readyz', port: adminPort }
              periodSeconds: 5
              timeoutSeconds: 5
              failureThreshold: 3
            }
          ]
          volumeMounts: [
            { volumeName: configurationVolume, mountPath: '/etc/gridfan' }
            { volumeName: dataVolume, mountPath: '/var/lib/gridfan' }
          ]
        }
      ]
      volumes: [
        {
          name: configurationVolume
          storageType: 'Secret'
          secrets: concat(
            [{ secretRef: 'gridfan-yaml', path: 'gridfan.yaml' }],
            natsPrivateCa ? [{ secretRef: 'nats-ca', path: 'nats-ca.pem' }] : []
          )
        }
        {
          name: dataVolume
          storageType: 'EmptyDir'
        }
      ]
      scale: {
        minReplicas: minReplicas
        maxReplicas: maxReplicas
        rules: concat(
          concurrentRequests > 0
            ? [{ name: 'requests', http: { metadata: { concurrentRequests: string(concurrentRequests) } } }]
            : [],
          map(lagConsumers, consumer => {
            name: 'lag-${consumer}'
            custom: {
              type: 'nats-jetstream'
              metadata: {
                natsServerMonitoringEndpoint: lagEndpoint
                account: 'GRIDFAN'
                stream: 'EVENTS'
                consumer: consumer
                lagThreshold: string(lagThreshold)
              }
            }
          })
        )
      }
    }
  }
}

@description('Resource id of the app.')
output resourceId string = app.id

@description('Name of the app.')
output name string = app.name

@description('Host of the public listener; empty without one.')
output host string = ingress ? app.properties.configuration.ingress.fqdn : ''
