metadata name = 'gridfan'
metadata description = 'Everything that gridfan needs in Azure, but for the event subscriptions: Event Grid calls gridfan when it makes those, so they follow in subscriptions.bicep when gridfan answers.'

targetScope = 'subscription'

import { granteeType, referenceType } from 'modules/types.bicep'

// What it is called and where it is.

@description('Required. Name of this deployment. Another name is another one, beside the first.')
@minLength(1)
@maxLength(40)
param environmentName string

@description('Required. Region. It must have availability zones for natsMode cluster and for zoneRedundant.')
@minLength(1)
param location string

@description('Optional. Tags of all resources.')
param tags { *: string } = {}

@description('Required. Whether replicas, and the copies of dead letters, are spread over availability zones. It cannot be changed later.')
param zoneRedundant bool

// gridfan.

@description('Required. Image of gridfan, best by its digest.')
@minLength(1)
param image string

@description('Optional. Registry of the image, where its puller must log in. The identity of the apps needs the role AcrPull there. Empty where anybody may pull, and for the registry of this deployment.')
param registryServer string = ''

@description('Optional. Whether there is to be a container registry here.')
param withRegistry bool = false

@description('Optional. Whether the apps are deployed. False for a first run that only makes the registry to push the image to.')
param deployApps bool = true

@description('Optional. Template of the configuration, with the words of modules/gridfan.yaml.')
param configuration string = loadTextContent('modules/gridfan.yaml')

@description('Optional. Secrets of the key vault that your configuration has as environment variables, beside those of gridfan itself.')
param references referenceType[] = []

@description('Required. Client id of the app registration that stands for gridfan\'s webhook.')
@minLength(36)
@maxLength(36)
param webhookAppId string

@description('Optional. Application ID URI of that registration.')
param webhookAppUri string = 'api://${webhookAppId}'

@description('Required. Cores of a router replica, as a decimal number. With natsMode embedded they decide how large the store can be: 1 GiB up to 0.25, 2 up to 0.5, 4 up to 1.0, else 8.')
@allowed(['0.25', '0.5', '0.75', '1.0', '1.25', '1.5', '1.75', '2.0', '4.0'])
param routerCpu string

@description('Optional. Least number of router replicas; natsMode embedded has one.')
@minValue(1)
@maxValue(30)
param routerMinReplicas int = 2

@description('Optional. Most router replicas; natsMode embedded has one.')
@minValue(1)
@maxValue(300)
param routerMaxReplicas int = 10

@description('Optional. Requests under way in one router replica above which there is another.')
@minValue(1)
param routerRequests int = 50

@description('Optional. Networks that may reach the ingress, as in 203.0.113.0/24. Everybody if there are none: Event Grid has no fixed addresses, its token is what lets it in.')
param ingressNetworks string[] = []

@description('Optional. Cores of a replica that delivers, as a decimal number.')
@allowed(['0.25', '0.5', '0.75', '1.0', '1.25', '1.5', '1.75', '2.0', '4.0'])
param subscribersCpu string = '0.5'

@description('Optional. Least number of replicas that deliver.')
@minValue(1)
@maxValue(30)
param subscribersMinReplicas int = 2

@description('Optional. Most replicas that deliver. Above the least number only with lagConsumers.')
@minValue(1)
@maxValue(300)
param subscribersMaxReplicas int = 2

@description('Optional. Subscribers after whose waiting events the number of replicas goes; natsMode cluster only. A scaler that cannot read its numbers stops all scaling.')
param lagConsumers string[] = []

@description('Optional. Waiting events for one replica, with lagConsumers.')
@minValue(1)
param lagThreshold int = 1000

@description('Required. Space for all streams together, as in 8GiB. In embedded mode less than the volume of the replica; in cluster mode less than nine tenths of natsDiskSizeGB.')
@minLength(2)
param storageMaxBytes string

// NATS.

@description('Required. Where the broker is. embedded: in the one replica, and lost with it; for trying out only. cluster: on virtual machines of this deployment. external: natsUrl.')
@allowed(['embedded', 'cluster', 'external'])
param natsMode string

@description('Optional. With natsMode cluster, the number of nodes. Every event is on as many disks.')
@allowed([1, 3])
param natsNodes int = 3

@description('Optional. With natsMode external, the servers: nats:// or tls:// URLs, separated by commas.')
param natsUrl string = ''

@description('Optional. With natsMode external, how many servers keep each stream.')
@minValue(1)
@maxValue(5)
param natsReplicas int = 3

@description('Optional. With natsMode external, your word that every server has sync_interval: always. Without it, gridfan warns that a power cut may lose events.')
param natsSyncAlways bool = false

@description('Optional. With natsMode external, the user to log in as; natsPassword is its password. Empty where nobody has to.')
param natsUser string = ''

@description('Optional. With natsMode external, whether the servers\' certificates are signed by an authority of yours, which the key vault has as nats-ca.')
param natsPrivateCa bool = false

@description('Optional. Version of nats-server on the nodes, without v.')
param natsVersion string = '2.15.2'

@description('Optional. With natsMode cluster, SHA-256 of nats-server-v<version>-linux-amd64.tar.gz, as the release\'s SHA256SUMS has it.')
param natsSha256Amd64 string = ''

@description('Optional. With natsMode cluster, SHA-256 of nats-server-v<version>-linux-arm64.tar.gz.')
param natsSha256Arm64 string = ''

@description('Optional. Which nodes this run makes or changes, by number; the others stay as they are. What cloud-init was told cannot be changed on a virtual machine that is there: see Upgrade in README.md.')
param natsDeployNodes int[] = [1, 2, 3]

@description('Optional. Snapshots that the data disks are made from, in the order of the nodes: see Restore in README.md. Empty disks by default.')
param natsDiskSnapshotIds string[] = []

@description('Optional. Availability zones of the nodes, in their order.')
@minLength(1)
param natsZones ('1' | '2' | '3')[] = ['1', '2', '3']

@description('Optional. Size of the nodes. It must take Premium SSD v2.')
param natsVmSize string = 'Standard_D2as_v5'

@description('Optional. server-arm64 for sizes with ARM processors.')
@allowed(['server', 'server-arm64'])
param natsImageSku string = 'server'

@description('Optional. Size of the data disk of each node.')
@minValue(4)
@maxValue(32767)
param natsDiskSizeGB int = 64

@description('Optional. Operations per second of each data disk. Every event waits for some.')
@minValue(3000)
@maxValue(80000)
param natsDiskIops int = 3000

@description('Optional. MB per second of each data disk.')
@minValue(125)
@maxValue(1200)
param natsDiskMBps int = 125

@description('Optional. Whether temporary disks and caches of the nodes are encrypted on their hosts too. The subscription must have the feature EncryptionAtHost.')
param natsEncryptionAtHost bool = false

@description('Optional. User that may log in at the nodes. They have no public address.')
@minLength(1)
@maxLength(32)
param natsAdminUsername string = 'gridfan'

@description('Optional. With natsMode cluster, the public key of that user, in the form of OpenSSH.')
param sshPublicKey string = ''

// Network.

@description('Optional. The virtual network, at least a /21.')
param addressPrefix string = '10.20.0.0/16'

@description('Optional. The part of it for the apps, a /27 or larger.')
param appsPrefix string = cidrSubnet(addressPrefix, 23, 0)

@description('Optional. The part of it for the NATS nodes.')
param nodesPrefix string = cidrSubnet(addressPrefix, 27, 32)

@description('Optional. Whether gridfan calls subscribers from one public address. With natsMode cluster it always does.')
param fixedOutboundAddress bool = false

// Senders.

@description('Optional. What finance and operations posts to its topic. It cannot be changed later.')
@allowed(['EventGridSchema', 'CloudEventSchemaV1_0'])
param fnoTopicSchema string = 'EventGridSchema'

@description('Optional. Identities that may publish CloudEvents to the general topic.')
param publishers granteeType[] = []

@description('Optional. Networks from which the general topic is published to. Everybody with a token if there are none.')
param publisherNetworks string[] = []

// Operation.

@description('Optional. Mail addresses that are written to when something is wrong, separated by commas.')
param alertEmails string = ''

@description('Optional. How many days logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionInDays int = 30

@description('Required. Whether secrets cannot be purged before their retention ends, by nobody. It cannot be switched off again.')
param purgeProtection bool

// Secrets. An empty one leaves what is in the key vault as it is.

@description('Required. What users of gridfan\'s admin API show: at least 16 characters.')
@secure()
param adminToken string

@description('Required. Password of the NATS user: letters and digits, at least 16. Empty with natsMode embedded.')
@secure()
param natsPassword string

@description('Required. Password of the NATS user sys, of the system account. Empty without nodes.')
@secure()
param natsSysPassword string

@description('Required. Password with which the nodes know each other. Empty without nodes.')
@secure()
param natsRoutePassword string

@description('Required. The authority that signed the nodes\' certificate, in PEM. Empty without nodes.')
@secure()
param natsCa string

@description('Required. Certificate for the addresses of all nodes, in PEM. Empty without nodes.')
@secure()
param natsNodeCert string

@description('Required. Key of that certificate, in PEM. Empty without nodes.')
@secure()
param natsNodeKey string

var abbreviations = loadJsonContent('abbreviations.json')
var token = toLower(uniqueString(subscription().id, environmentName, location))
var embedded = natsMode == 'embedded'
var clustered = natsMode == 'cluster'
var nodeNames = [for i in range(0, clustered ? natsNodes : 0): '${abbreviations.virtualMachine}-nats-${i + 1}-${token}']
var deployedNodes = filter(range(0, length(nodeNames)), i => contains(natsDeployNodes, i + 1))

var topicKeySecret = 'fno-topic-key'
var eventsKeySecret = 'events-topic-key'
var deadLetterPrefix = 'deadletters-'
var queueNames = ['fno', 'dataverse']
// The sources of the configuration that Event Grid delivers to.
var pushedSources = ['fno', 'events']
var routerName = '${abbreviations.containerApp}-router-${token}'
var subscribersName = '${abbreviations.containerApp}-subscribers-${token}'

// Azure keeps the first four addresses of a subnet.
var nodeAddresses = [for i in range(0, natsNodes): cidrHost(nodesPrefix, 3 + i)]
var clusterUrls = join(map(nodeAddresses, ip => 'tls://${ip}:4222'), ',')
var clusterMonitors = join(map(nodeAddresses, ip => '"http://${ip}:8222"'), ', ')
var externalLogin = empty(natsUser) ? '' : ', user: "${natsUser}", password: "\${env:GRIDFAN_NATS_PASSWORD}"'
var brokers = {
  embedded: '{ embedded: { dir: /var/lib/gridfan, ephemeral: true } }'
  cluster: '{ url: "${clusterUrls}", user: gridfan, password: "\${env:GRIDFAN_NATS_PASSWORD}", replicas: ${natsNodes}, durability: sync-always, monitoring: [ ${clusterMonitors} ], tls: { ca: /etc/gridfan/nats-ca.pem } }'
  external: '{ url: "${natsUrl}"${externalLogin}, replicas: ${natsReplicas}${natsSyncAlways ? ', durability: sync-always' : ''}${natsPrivateCa ? ', tls: { ca: /etc/gridfan/nats-ca.pem }' : ''} }'
}
var broker = brokers[natsMode]
var loginEndpoint = environment().authentication.loginEndpoint
var authority = endsWith(loginEndpoint, '/') ? substring(loginEndpoint, 0, length(loginEndpoint) - 1) : loginEndpoint

// What is known before anything is deployed; the rest follows where the apps are.
var knownConfiguration = replace(
  replace(
    replace(
      replace(
        replace(
          replace(replace(configuration, '__BROKER__', broker), '__STORAGE__', storageMaxBytes),
          '__ENVIRONMENT__',
          environmentName
        ),
        '__TENANT__',
        tenant().tenantId
      ),
      '__AUTHORITY__',
      authority
    ),
    '__WEBHOOK_APP_ID__',
    webhookAppId
  ),
  '__WEBHOOK_APP_URI__',
  webhookAppUri
)

resource group 'Microsoft.Resources/resourceGroups@2025-04-01' = {
  name: '${abbreviations.resourceGroup}-gridfan-${token}'
  location: location
  tags: { ...tags, 'azd-env-name': environmentName }
}

module monitoring 'modules/monitoring.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.logAnalyticsWorkspace}-gridfan-${token}'
    location: location
    tags: tags
    retentionInDays: logRetentionInDays
    workbookTitle: 'gridfan ${environmentName}'
  }
}

module network 'modules/network.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.virtualNetwork}-gridfan-${token}'
    natGatewayName: '${abbreviations.natGateway}-gridfan-${token}'
    publicIpName: '${abbreviations.publicIpAddress}-gridfan-${token}'
    securityGroupName: '${abbreviations.networkSecurityGroup}-nodes-${token}'
    location: location
    tags: tags
    addressPrefix: addressPrefix
    appsPrefix: appsPrefix
    nodesPrefix: nodesPrefix
    withNodes: clustered
    withNatGateway: fixedOutboundAddress
  }
}

module appIdentity 'modules/identity.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.managedIdentity}-apps-${token}'
    location: location
    tags: tags
  }
}

module nodeIdentity 'modules/identity.bicep' = if (clustered) {
  scope: group
  params: {
    name: '${abbreviations.managedIdentity}-nodes-${token}'
    location: location
    tags: tags
  }
}

module keyVault 'modules/keyvault.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.keyVault}-gridfan-${token}'
    location: location
    tags: tags
    tenantId: tenant().tenantId
    purgeProtection: purgeProtection
    workspaceId: monitoring.outputs.resourceId
    readers: concat(
      [{ principalId: appIdentity.outputs.principalId, resourceId: appIdentity.outputs.resourceId }],
      clustered
        ? [{ principalId: nodeIdentity!.outputs.principalId, resourceId: nodeIdentity!.outputs.resourceId }]
        : []
    )
    contents: {
      'gridfan-admin-token': adminToken
      'nats-gridfan-password': natsPassword
      'nats-sys-password': natsSysPassword
      'nats-route-password': natsRoutePassword
      'nats-ca': natsCa
      'nats-node-cert': natsNodeCert
      'nats-node-key': natsNodeKey
    }
  }
}

module registry 'modules/registry.bicep' = if (withRegistry) {
  scope: group
  params: {
    name: '${abbreviations.containerRegistry}gridfan${token}'
    location: location
    tags: tags
    sku: 'Basic'
    pullers: [{ principalId: appIdentity.outputs.principalId, resourceId: appIdentity.outputs.resourceId }]
  }
}

module fnoTopic 'modules/eventgrid-topic.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.eventGridTopic}-fno-${token}'
    location: location
    tags: tags
    inputSchema: fnoTopicSchema
    // Finance and operations knows nothing else.
    allowKeys: true
    vaultName: keyVault.outputs.name
    keySecretName: topicKeySecret
    workspaceId: monitoring.outputs.resourceId
  }
}

module eventsTopic 'modules/eventgrid-topic.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.eventGridTopic}-events-${token}'
    location: location
    tags: tags
    inputSchema: 'CloudEventSchemaV1_0'
    allowKeys: false
    senders: publishers
    allowedNetworks: publisherNetworks
    vaultName: keyVault.outputs.name
    keySecretName: eventsKeySecret
    workspaceId: monitoring.outputs.resourceId
  }
}

module storage 'modules/storage.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.storageAccount}gridfan${token}'
    location: location
    tags: tags
    containerNames: map(pushedSources, source => '${deadLetterPrefix}${source}')
    sku: zoneRedundant ? 'Standard_ZRS' : 'Standard_LRS'
    writers: [
      { principalId: fnoTopic.outputs.principalId, resourceId: fnoTopic.outputs.resourceId }
      { principalId: eventsTopic.outputs.principalId, resourceId: eventsTopic.outputs.resourceId }
      { principalId: appIdentity.outputs.principalId, resourceId: appIdentity.outputs.resourceId }
    ]
  }
}

module serviceBus 'modules/servicebus.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.serviceBusNamespace}-gridfan-${token}'
    location: location
    tags: tags
    sku: 'Standard'
    queueNames: queueNames
    receivers: [{ principalId: appIdentity.outputs.principalId, resourceId: appIdentity.outputs.resourceId }]
    vaultName: keyVault.outputs.name
    workspaceId: monitoring.outputs.resourceId
  }
}

module nodes 'modules/nats-vm.bicep' = [
  for i in deployedNodes: {
    scope: group
    params: {
      name: nodeNames[i]
      interfaceName: '${abbreviations.networkInterface}-nats-${i + 1}-${token}'
      diskName: '${abbreviations.disk}-nats-${i + 1}-${token}'
      nodeName: 'nats-${i + 1}'
      location: location
      tags: tags
      zone: natsZones[i % length(natsZones)]
      subnetId: network.outputs.nodesSubnetId
      address: nodeAddresses[i]
      allAddresses: nodeAddresses
      clusterName: 'gridfan-${token}'
      identityId: nodeIdentity!.outputs.resourceId
      identityClientId: nodeIdentity!.outputs.clientId
      vaultUrl: keyVault.outputs.uri
      vmSize: natsVmSize
      imageSku: natsImageSku
      adminUsername: natsAdminUsername
      sshPublicKey: sshPublicKey
      encryptionAtHost: natsEncryptionAtHost
      snapshotId: i < length(natsDiskSnapshotIds) ? natsDiskSnapshotIds[i] : ''
      diskSizeGB: natsDiskSizeGB
      diskIops: natsDiskIops
      diskMBps: natsDiskMBps
      natsVersion: natsVersion
      natsSha256Amd64: natsSha256Amd64
      natsSha256Arm64: natsSha256Arm64
    }
  }
]

module appsEnvironment 'modules/environment.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.containerAppsEnvironment}-gridfan-${token}'
    location: location
    tags: tags
    subnetId: network.outputs.appsSubnetId
    zoneRedundant: zoneRedundant
    workspaceName: monitoring.outputs.name
  }
}

module router 'modules/app.bicep' = if (deployApps) {
  scope: group
  params: {
    name: routerName
    location: location
    tags: tags
    environmentId: appsEnvironment.outputs.resourceId
    image: image
    registryServer: withRegistry ? registry!.outputs.loginServer : registryServer
    identityId: appIdentity.outputs.resourceId
    identityClientId: appIdentity.outputs.clientId
    vaultUri: keyVault.outputs.uri
    role: embedded ? 'all' : 'router'
    configuration: replace(
      replace(
        replace(knownConfiguration, '__SERVICE_BUS__', serviceBus.outputs.host),
        '__DEADLETTERS__',
        storage.outputs.blobEndpoint
      ),
      '__IDENTITY_CLIENT_ID__',
      appIdentity.outputs.clientId
    )
    natsPassword: clustered || (!embedded && !empty(natsUser))
    natsPrivateCa: clustered || (!embedded && natsPrivateCa)
    references: references
    ingress: true
    allowedNetworks: ingressNetworks
    cpu: routerCpu
    minReplicas: embedded ? 1 : routerMinReplicas
    maxReplicas: embedded ? 1 : routerMaxReplicas
    concurrentRequests: embedded ? 0 : routerRequests
  }
  dependsOn: [nodes]
}

module subscribers 'modules/app.bicep' = if (deployApps && !embedded) {
  scope: group
  params: {
    name: subscribersName
    location: location
    tags: tags
    environmentId: appsEnvironment.outputs.resourceId
    image: image
    registryServer: withRegistry ? registry!.outputs.loginServer : registryServer
    identityId: appIdentity.outputs.resourceId
    identityClientId: appIdentity.outputs.clientId
    vaultUri: keyVault.outputs.uri
    role: 'subscribers'
    configuration: replace(
      replace(
        replace(knownConfiguration, '__SERVICE_BUS__', serviceBus.outputs.host),
        '__DEADLETTERS__',
        storage.outputs.blobEndpoint
      ),
      '__IDENTITY_CLIENT_ID__',
      appIdentity.outputs.clientId
    )
    natsPassword: clustered || !empty(natsUser)
    natsPrivateCa: clustered || natsPrivateCa
    references: references
    ingress: false
    cpu: subscribersCpu
    minReplicas: subscribersMinReplicas
    maxReplicas: subscribersMaxReplicas
    lagConsumers: clustered ? lagConsumers : []
    lagEndpoint: '${nodeAddresses[0]}:8222'
    lagThreshold: lagThreshold
  }
  dependsOn: [nodes]
}

module alerts 'modules/alerts.bicep' = {
  scope: group
  params: {
    name: '${abbreviations.actionGroup}-gridfan-${token}'
    location: location
    tags: tags
    emailAddresses: empty(alertEmails) ? [] : split(replace(alertEmails, ' ', ''), ',')
    topicIds: [fnoTopic.outputs.resourceId, eventsTopic.outputs.resourceId]
    appIds: deployApps ? [router!.outputs.resourceId] : []
    appNames: embedded ? [routerName] : [routerName, subscribersName]
    nodeIds: [
      for node in nodeNames: resourceId(subscription().subscriptionId, group.name, 'Microsoft.Compute/virtualMachines', node)
    ]
    workspaceId: monitoring.outputs.resourceId
  }
  dependsOn: [nodes]
}

@description('Resource group of all this.')
output AZURE_RESOURCE_GROUP string = group.name

@description('Name of the app that lets events in.')
output ROUTER_NAME string = routerName

@description('Its public address; empty without apps.')
output ROUTER_URL string = deployApps ? 'https://${router!.outputs.host}' : ''

@description('The sources that Event Grid delivers to, separated by blanks; wait-ready.sh asks each of them.')
output INGRESS_SOURCES string = join(pushedSources, ' ')

@description('Name of the app that delivers; the router with natsMode embedded.')
output SUBSCRIBERS_NAME string = embedded ? routerName : subscribersName

@description('Client id of the app registration that stands for gridfan\'s webhook.')
output WEBHOOK_APP_ID string = webhookAppId

@description('Client id of the identity of the apps.')
output APP_IDENTITY_CLIENT_ID string = appIdentity.outputs.clientId

@description('Object id of the identity of the apps, for roles at what subscribers need.')
output APP_IDENTITY_PRINCIPAL_ID string = appIdentity.outputs.principalId

@description('Name of the key vault.')
output KEY_VAULT_NAME string = keyVault.outputs.name

@description('Resource id of the key vault.')
output KEY_VAULT_ID string = keyVault.outputs.resourceId

@description('Address of the key vault, which finance and operations asks for as its DNS name.')
output KEY_VAULT_URI string = keyVault.outputs.uri

@description('Name of the topic of finance and operations.')
output FNO_TOPIC_NAME string = fnoTopic.outputs.name

@description('Address of that topic.')
output FNO_TOPIC_ENDPOINT string = fnoTopic.outputs.endpoint

@description('Name of the secret in the key vault with that topic\'s key.')
output FNO_TOPIC_KEY_NAME string = topicKeySecret

@description('Name of the general topic.')
output EVENTS_TOPIC_NAME string = eventsTopic.outputs.name

@description('Resource id of the general topic, to grant EventGrid Data Sender on.')
output EVENTS_TOPIC_ID string = eventsTopic.outputs.resourceId

@description('Address of the general topic.')
output EVENTS_TOPIC_ENDPOINT string = eventsTopic.outputs.endpoint

@description('Name of the Service Bus namespace.')
output SERVICE_BUS_NAME string = serviceBus.outputs.name

@description('Host of the Service Bus namespace.')
output SERVICE_BUS_HOST string = serviceBus.outputs.host

@description('Name of the storage account with what Event Grid could not deliver.')
output DEADLETTER_STORAGE_NAME string = storage.outputs.name

@description('What the names of the containers in it begin with; the name of the source follows.')
output DEADLETTER_CONTAINER_PREFIX string = deadLetterPrefix

@description('Name of the container registry; empty without one.')
output REGISTRY_NAME string = withRegistry ? registry!.outputs.name : ''

@description('Host of the container registry; empty without one.')
output REGISTRY_SERVER string = withRegistry ? registry!.outputs.loginServer : ''

@description('Name of the Log Analytics workspace.')
output WORKSPACE_NAME string = monitoring.outputs.name

@description('Addresses of the NATS nodes, which their certificate must name.')
output NATS_ADDRESSES string[] = clustered ? nodeAddresses : []

@description('Names of the virtual machines of the NATS nodes.')
output NATS_VM_NAMES string[] = nodeNames

@description('Public address from which gridfan calls subscribers; empty if it is not fixed.')
output OUTBOUND_ADDRESS string = network.outputs.outboundAddress
