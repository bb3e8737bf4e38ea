metadata name = 'NATS node'
metadata description = 'A virtual machine with one server of the NATS cluster, in a zone of its own, with a disk of its own.'

@description('Required. Name of the virtual machine.')
@minLength(1)
@maxLength(64)
param name string

@description('Required. Name of the network interface.')
param interfaceName string

@description('Required. Name of the data disk.')
param diskName string

@description('Required. Name of the server in the cluster, as in nats-1.')
@minLength(1)
@maxLength(63)
param nodeName string

@description('Required. Region.')
param location string

@description('Required. Tags of the resources.')
param tags { *: string }

@description('Required. Availability zone.')
@allowed(['1', '2', '3'])
param zone string

@description('Required. Resource id of the subnet.')
param subnetId string

@description('Required. Address of the node in the subnet.')
param address string

@description('Required. Addresses of all nodes, this one included.')
param allAddresses string[]

@description('Required. Name of the cluster.')
param clusterName string

@description('Required. Resource id of the identity that may read the key vault.')
param identityId string

@description('Required. Client id of that identity.')
param identityClientId string

@description('Required. Address of the key vault.')
param vaultUrl string

@description('Required. Size of the virtual machine: one that takes Premium SSD v2.')
param vmSize string

@description('Required. The image\'s SKU below ubuntu-24_04-lts; server-arm64 for sizes with ARM processors.')
@allowed(['server', 'server-arm64'])
param imageSku string

@description('Required. User that may log in.')
@minLength(1)
@maxLength(32)
param adminUsername string

@description('Required. Public key of that user, in the form of OpenSSH.')
@minLength(60)
param sshPublicKey string

@description('Required. Whether temporary disks and caches are encrypted on the host too. The subscription must have the feature EncryptionAtHost.')
param encryptionAtHost bool

@description('Optional. Snapshot that the data disk is made from; an empty disk by default. It cannot be changed later.')
param snapshotId string = ''

@description('Required. Size of the data disk.')
@minValue(4)
@maxValue(32767)
param diskSizeGB int

@description('Required. Operations per second of the data disk.')
@minValue(3000)
@maxValue(80000)
param diskIops int

@description('Required. MB per second of the data disk.')
@minValue(125)
@maxValue(1200)
param diskMBps int

@description('Required. Version of nats-server, without v.')
param natsVersion string

@description('Required. SHA-256 of the release\'s archive for linux-amd64.')
@minLength(64)
@maxLength(64)
param natsSha256Amd64 string

@description('Required. SHA-256 of the release\'s archive for linux-arm64.')
@minLength(64)
@maxLength(64)
param natsSha256Arm64 string

var routes = join(map(allAddresses, ip => '"tls://${ip}:6222"'), ', ')
var template = loadTextContent('nats.conf.tmpl')
// A single node has no cluster, the last block: it would wait for a leader.
var natsConfiguration = replace(
  replace(
    replace(
      replace(
        replace(length(allAddresses) > 1 ? template : split(template, '\ncluster {')[0], '__NODE__', nodeName),
        '__ZONE__',
        zone
      ),
      '__IP__',
      address
    ),
    '__ROUTES__',
    routes
  ),
  '__CLUSTER__',
  clusterName
)
var cloudInit = replace(
  replace(
    replace(
      replace(
        replace(
          replace(loadTextContent('cloud-init.yaml'), '__NATS_CONF__', base64(natsConfiguration)),
          '__VAULT_URL__',
          vaultUrl
        ),
        '__IDENTITY_CLIENT_ID__',
        identityClientId
      ),
      '__NATS_VERSION__',
      natsVersion
    ),
    '__NATS_SHA256_AMD64__',
    natsSha256Amd64
  ),
  '__NATS_SHA256_ARM64__',
  natsSha256Arm64
)

resource networkInterface 'Microsoft.Network/networkInterfaces@2025-05-01' = {
  name: interfaceName
  location: location
  tags: tags
  properties: {
    enableAcceleratedNetworking: true
    ipConfigurations: [
      {
        name: 'primary'
        properties: {
          subnet: { id: subnetId }
          privateIPAllocationMethod: 'Static'
          privateIPAddress: address
        }
      }
    ]
  }
}

resource disk 'Microsoft.Compute/disks@2025-01-02' = {
  name: diskName
  location: location
  tags: tags
  zones: [zone]
  sku: { name: 'PremiumV2_LRS' }
  properties: {
    creationData: empty(snapshotId) ? { createOption: 'Empty' } : { createOption: 'Copy', sourceResourceId: snapshotId }
    diskSizeGB: diskSizeGB
    diskIOPSReadWrite: diskIops
    diskMBpsReadWrite: diskMBps
    networkAccessPolicy: 'DenyAll'
    publicNetworkAccess: 'Disabled'
  }
}

resource machine 'Microsoft.Compute/virtualMachines@2025-04-01' = {
  name: name
  location: location
  tags: tags
  zones: [zone]
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    hardwareProfile: { vmSize: vmSize }
    storageProfile: {
      imageReference: {
        publisher: 'Canonical'
        offer: 'ubuntu-24_04-lts'
        sku: imageSku
        version: 'latest'
      }
      osDisk: {
        createOption: 'FromImage'
        caching: 'ReadWrite'
        managedDisk: { storageAccountType: 'Premium_LRS' }
        deleteOption: 'Delete'
      }
      dataDisks: [
        {
          lun: 0
          createOption: 'Attach'
          caching: 'None'
          deleteOption: 'Detach'
          managedDisk: { id: disk.id }
        }
      ]
    }
    osProfile: {
      computerName: nodeName
      adminUsername: adminUsername
      // Read at the first boot only; Azure refuses to change it later.
      customData: base64(cloudInit)
      linuxConfiguration: {
        disablePasswordAuthentication: true
        ssh: {
          publicKeys: [{ path: '/home/${adminUsername}/.ssh/authorized_keys', keyData: sshPublicKey }]
        }
        // Ubuntu installs its own updates and cloud-init has the nodes reboot in turn:
        // Azure knows of no turns.
        patchSettings: { patchMode: 'ImageDefault', assessmentMode: 'ImageDefault' }
      }
    }
    networkProfile: {
      networkInterfaces: [{ id: networkInterface.id, properties: { primary: true, deleteOption: 'Delete' } }]
    }
    securityProfile: {
      securityType: 'TrustedLaunch'
      encryptionAtHost: encryptionAtHost
      uefiSettings: { secureBootEnabled: true, vTpmEnabled: true }
    }
    diagnosticsProfile: { bootDiagnostics: { enabled: true } }
  }
}

@description('Resource id of the virtual machine.')
output resourceId string = machine.id

@description('Name of the virtual machine.')
output name string = machine.name

@description('Resource id of the data disk.')
output diskId string = disk.id
